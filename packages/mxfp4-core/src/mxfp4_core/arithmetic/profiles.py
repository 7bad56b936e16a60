"""Names of profiles: the registry, and what a name or a rule with ties stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol

from mxfp4_core._plugins import PROFILES, Broken, plugins
from mxfp4_core._text import nearest
from mxfp4_core.arithmetic.codec import Ties
from mxfp4_core.arithmetic.peers import PEERS
from mxfp4_core.arithmetic.profile import FLUSH, Profile, Zeros
from mxfp4_core.arithmetic.scales import RULES, ScaleRule
from mxfp4_core.errors import ConfigError

_BY_NAME: Mapping[str, Profile] = MappingProxyType({profile.name: profile for profile in PEERS})


def profiles() -> Mapping[str, Profile]:
    """Return the named profiles, read-only, in the order of ``docs/scale-rules.md``."""
    return _BY_NAME


def resolve(profile: str | None = None, *, rule: str | None = None, ties: str | None = None) -> Profile:
    """Return the profile that a name, or a rule and a tie rule, stand for.

    Args:
        profile: a named profile, or a ``rule/ties`` pair such as ``even/even``.
        rule: a scale rule; ``even`` if neither is given.
        ties: ``even``, ``away`` or ``zero``; ``even`` if not given.

    Raises:
        ConfigError: unknown names, names that two packages claim, or a profile together with a rule or ties.
    """
    if profile is not None and rule is None and ties is None and profile in plugins(PROFILES):
        return _installed(profile)
    return _resolve(profile, rule, ties)


@lru_cache(maxsize=256)
def _resolve(profile: str | None, rule: str | None, ties: str | None) -> Profile:
    if profile is None:
        scale_rule, tie_rule = ScaleRule.parse("even" if rule is None else rule), _parse_ties(ties)
        return Profile(f"{scale_rule.name}/{tie_rule}", scale_rule, tie_rule)
    if rule is not None or ties is not None:
        raise ConfigError(
            "a profile and a rule were both given",
            seen=f"profile={profile!r}, rule={rule!r}, ties={ties!r}",
            rule="a profile fixes the scale rule and the tie rule",
            fix="drop profile, or drop rule and ties",
        )
    if profile in _BY_NAME:
        return _BY_NAME[profile]
    if "/" in profile:
        scale, _, tie = profile.partition("/")
        return resolve(rule=scale, ties=tie)
    names = [*_BY_NAME, *plugins(PROFILES)]
    near = nearest(profile, [*names, *RULES], count=1, cutoff=0.5)
    fix = "see mxfp4_core.profiles() for the names"
    if near:
        fix = f"did you mean rule={near[0]!r}?" if near[0] in RULES else f"did you mean {near[0]!r}?"
    raise ConfigError(
        "no profile has that name",
        seen=repr(profile),
        rule=f"a profile is one of {', '.join(names)}, or a pair such as even/even",
        fix=fix,
    )


def _installed(name: str) -> Profile:
    plugin = plugins(PROFILES)[name]
    if name in _BY_NAME:
        raise ConfigError(
            f"profile {name!r} is not one thing",
            seen=f"the core has it, and {plugin.distribution} registers the same name",
            rule="a profile has one meaning: its name stands for bytes",
            fix=plugin.advice,
        )
    found = plugin.object()
    if isinstance(found, Broken):
        raise ConfigError(
            f"profile {name!r} cannot be used", seen=found.reason, rule="its package works", fix=found.fix
        )
    if not isinstance(found, Profile) or found.name != name or "/" in name:
        raise ConfigError(
            f"profile {name!r} cannot be used",
            seen=f"{plugin.points[0].value} is {found!r} ({plugin.distribution})",
            rule="the entry point is a Profile of that name, which has no '/'",
            fix=plugin.advice,
        )
    return found


def pairs() -> tuple[str, ...]:
    """Return the names of all pairs of a scale rule and a tie rule, the default first, ``ceil_d`` with 7.25."""
    rules = sorted((*RULES, "ceil_d(7.25)"), key=lambda rule: rule != "even")
    return tuple(f"{rule}/{ties}" for rule in rules for ties in Ties)


class _HasProfiles(Protocol):
    """A format, as far as messages need it."""

    name: str

    @property
    def profiles(self) -> tuple[str, ...]: ...


def resolve_among(
    form: _HasProfiles,
    known: Sequence[Profile],
    profile: str | None = None,
    *,
    rule: str | None = None,
    ties: str | None = None,
) -> Profile:
    """Return the profile of a format that has its own, for `Format.resolve`.

    Args:
        form: the format. Pairs are taken that it lists; if it lists all, every ``ceil_d(D)`` is, too.
        known: its own profiles, the default first; each hides what has its name elsewhere.
        profile: as for `resolve`, like the next two.
        rule: a scale rule; ``floor`` if only ties are given.
        ties: a tie rule.

    Raises:
        ConfigError: as for `resolve`, or a profile that does not make the format.
    """
    if profile is None and rule is None and ties is None:
        return known[0]
    own = {one.name: one for one in known}
    if profile in own and rule is None and ties is None:
        return own[profile]
    if profile is not None and "/" not in profile and rule is None and ties is None:
        raise _unsuitable(form, profile)
    found = resolve(profile, rule="floor" if profile is None and rule is None else rule, ties=ties)
    if found.name in own:
        return own[found.name]
    if found.name in form.profiles or ("ceil_d(7.25)/even" in form.profiles and not found.peer):
        return found
    raise _unsuitable(form, found.name)


def _unsuitable(form: _HasProfiles, profile: str) -> ConfigError:
    names = form.profiles
    near = nearest(profile, names, count=1)
    return ConfigError(
        f"profile {profile!r} does not make the format {form.name}",
        seen=repr(profile),
        rule=f"its profiles are {', '.join(names)}",
        fix=f"did you mean {near[0]!r}?"
        if near
        else f"use {names[0]!r}, the default of this format, or another one",
    )


def _parse_ties(ties: str | None) -> Ties:
    try:
        return Ties.EVEN if ties is None else Ties(ties)
    except ValueError:
        raise ConfigError(
            "no tie rule has that name",
            seen=repr(ties),
            rule=f"ties is one of {', '.join(Ties)}",
            fix="use 'even', the default",
        ) from None


__all__ = ["FLUSH", "Profile", "Zeros", "pairs", "profiles", "resolve", "resolve_among"]
