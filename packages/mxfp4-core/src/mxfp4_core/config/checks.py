"""What a config is checked for beyond types: names that exist, settings that contradict each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from mxfp4_core._plugins import BACKENDS, PROFILES, plugins
from mxfp4_core.arithmetic.formats.registry import formats, get
from mxfp4_core.arithmetic.scales import ScaleRule
from mxfp4_core.config.known import KNOWN
from mxfp4_core.config.messages import contradiction, listed, unknown_name
from mxfp4_core.config.patterns import Pattern
from mxfp4_core.config.words import FORMATS
from mxfp4_core.errors import ConfigError

PROFILE_NAMES: Final = (
    "compressed-tensors",
    "quark",
    "torchao-floor",
    "torchao-ceil",
    "torchao-even",
    "torchao-rceil",
    "aiter-triton",
    "aiter-triton-0.1.7",
    "aiter-hip",
    "vllm",
    "triton-kernels",
    "triton-kernels-old",
    "modelopt",
    "deepgemm",
    "tilekernels",
    "gguf",
    "msmodelslim",
    "auto-round",
)
"""Named profiles of ``mxfp4_core.arithmetic.profiles``, repeated here so that checking a config needs no torch."""

DUAL_PROFILE_NAMES: Final = ("ascend", "ascend-round", "ascend-floor", "msmodelslim")
"""The same of the format ``mxfp4-dual``."""

TIES: Final = ("even", "away", "zero")
KNOWN_BACKENDS: Final = ("reference", *KNOWN)
"""Backends of this project, installed or not. Third-party ones are found by their entry points."""


class _Override(Protocol):
    @property
    def pattern(self) -> str: ...
    @property
    def rule(self) -> str | None: ...
    @property
    def ties(self) -> str | None: ...
    @property
    def keep(self) -> bool | None: ...


def profile_name(profile: str | None, rule: str | None, ties: str | None, format: str = "mxfp4") -> str:
    """Return the name of the resolved profile, as the format would give it; that of ``mxfp4`` needs no torch."""
    if format != "mxfp4":
        return get(format).resolve(profile, rule=rule, ties=ties).name
    if profile is not None and "/" not in profile:
        return profile
    scale, _, tie = profile.partition("/") if profile is not None else (rule or "even", "", ties or "even")
    return f"{ScaleRule.parse(scale).name}/{tie}"


def check_arithmetic(what: str, profile: str | None, rule: str | None, ties: str | None) -> str:
    """Check profile, rule and ties, and return those that are set as text."""
    given = listed(profile=profile, rule=rule, ties=ties)
    if profile is not None:
        if rule is not None or ties is not None:
            why = "a profile already fixes the scale rule and the tie rule"
            raise contradiction(what, given, why, "drop profile, or drop rule and ties")
        if "/" in profile:
            rule, _, ties = profile.partition("/")
        elif profile not in (names := (*PROFILE_NAMES, *plugins(PROFILES), *DUAL_PROFILE_NAMES)):
            raise unknown_name("profile", profile, names)
    if rule is not None:
        ScaleRule.parse(rule)
    if ties is not None and ties not in TIES:
        raise unknown_name("ties", ties, TIES)
    return given


def check_format(what: str, format: str, profiles: Sequence[str | None]) -> None:
    """Check the name of the format, and that the profiles that are named make it."""
    if format not in (names := (*FORMATS, *(name for name in formats() if "+" not in name))):
        raise unknown_name("format", format, tuple(dict.fromkeys(names)))
    known = PROFILE_NAMES if format == "mxfp4" else get(format).profiles
    for profile in profiles:
        named = profile is not None and "/" not in profile
        if named and profile not in (*known, *(plugins(PROFILES) if format == "mxfp4" else ())):
            raise contradiction(
                what,
                f"profile {profile!r} with format {format!r}",
                f"profiles of that format: {', '.join(name for name in known if '/' not in name) or 'none by name'}",
                "choose one of these, or another format",
            )


def check_backend(key: str, name: str | None) -> None:
    """Check that the name of a backend is no misspelling of a known one."""
    # Only a typo is an error here: a config may name a backend that this machine lacks, and select_backend then
    # says what is missing.
    if name is None:
        return
    known = dict.fromkeys([*KNOWN_BACKENDS, *plugins(BACKENDS)])
    if name not in known:
        error = unknown_name(key, name, list(known), cutoff=0.75)
        if "did you mean" in error.fix or not name:
            raise error


def check_options(
    options: Mapping[str, Mapping[str, Any]], backend: str | None, fallback: str | None
) -> None:
    """Check what can be checked without the backends: names, kinds of values, and that somebody reads them.

    Which keys a backend has, it says itself when it is selected.
    """
    for name, values in options.items():
        check_backend("backend_options", name)
        if backend is not None and name not in (backend, fallback):
            named = f"backend = {backend!r}" + (f", fallback = {fallback!r}" if fallback else "")
            raise contradiction(
                "backend_options",
                f"options for {name!r}, where {named}",
                "options for a backend that can never be chosen would be ignored",
                "drop them, or leave backend out, which lets options for several machines stand side by side",
            )
        for key, value in values.items():
            items = value if isinstance(value, list) else [value]
            if not all(isinstance(item, str | int | float | bool) for item in items):
                raise ConfigError(
                    f"backend_options of {name!r} cannot be read",
                    seen=f"{key} = {value!r}",
                    rule="a value is a string, a number, true or false, or a list of these",
                    fix=f"write {key!r} in this way, or drop it",
                )


def check_patterns(targets: list[str], ignore: list[str], overrides: Sequence[_Override]) -> None:
    """Check that every pattern can be read, and that no two lists say opposite things about the same one."""
    for key, patterns in (("targets", targets), ("ignore", ignore)):
        for pattern in patterns:
            Pattern.parse(pattern)
        if twice := [pattern for pattern, count in Counter(patterns).items() if count > 1]:
            raise contradiction(
                key, f"{twice[0]!r} more than once", "a pattern is listed once", "drop the repetition"
            )
    ignored = set(ignore)
    if both := [pattern for pattern in targets if pattern in ignored]:
        raise contradiction(
            "config", f"{both[0]!r} in targets and in ignore", "a name is one or the other", "drop one"
        )
    seen: set[str] = set()
    for override in overrides:
        if override.pattern in seen:
            raise contradiction(
                "overrides", f"{override.pattern!r} twice", "a pattern has one override", "merge the two"
            )
        seen.add(override.pattern)
        if override.pattern in ignored and not override.keep:
            raise contradiction(
                "config",
                f"{override.pattern!r} in ignore, and an override that quantises it",
                "an ignored name has no rule",
                "drop one",
            )
        if override.pattern in targets and override.keep:
            raise contradiction(
                "config",
                f"{override.pattern!r} in targets, and an override that keeps it",
                "a name is quantised or kept",
                "drop one",
            )


def check_inheritance(profile: str | None, overrides: Sequence[_Override]) -> None:
    """Check that an override that sets half of the arithmetic has somewhere to inherit the other half from."""
    for override in overrides:
        if profile is not None and (override.rule is None) != (override.ties is None):
            raise contradiction(
                f"override {override.pattern!r}",
                f"{listed(rule=override.rule, ties=override.ties)}, where the config has profile = {profile!r}",
                "an override that sets one of rule and ties takes the other from the config, and a profile has none",
                "set both, or a profile",
            )


__all__ = [
    "DUAL_PROFILE_NAMES",
    "KNOWN_BACKENDS",
    "PROFILE_NAMES",
    "TIES",
    "check_arithmetic",
    "check_backend",
    "check_format",
    "check_inheritance",
    "check_options",
    "check_patterns",
    "profile_name",
]
