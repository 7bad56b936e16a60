"""The one configuration: what to quantise, by which rule, for which backend, written in which dialect.

The same schema is used by every entry point (Python, command line, adapters) and is stored in the files that
are written. ``docs/config.md`` explains each key; ``docs/config.schema.json`` is the exported JSON Schema.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, StrictBool, StrictInt, model_validator

from mxfp4_core.config.checks import (
    KNOWN_BACKENDS,
    PROFILE_NAMES,
    TIES,
    check_arithmetic,
    check_backend,
    check_format,
    check_inheritance,
    check_options,
    check_patterns,
    profile_name,
)
from mxfp4_core.config.known import dialect_names
from mxfp4_core.config.messages import contradiction, unknown_name
from mxfp4_core.config.model import CONFIG_VERSION, ConfigModel
from mxfp4_core.config.override import Override
from mxfp4_core.config.words import MACHINE, Activation
from mxfp4_core.errors import ConfigError

_Tail = Literal["refuse", "pad"]
_Refused = Literal["error", "keep"]
_NonFinite = Literal["refuse", "nan"]


class Mxfp4Config(ConfigModel):
    """What to quantise, how, for which backend, and how to write it.

    Every way of building one (constructor, ``from_dict``, ``from_file``) raises ``ConfigError``.
    """

    TITLE: ClassVar = "the config"

    version: StrictInt = Field(default=CONFIG_VERSION, description="Version of this schema.")
    format: str = Field(
        default="mxfp4",
        description="What weights become: mxfp4, mxfp4-dual (an FP32 scale for 512 values above the others) or mxfp8.",
    )
    profile: str | None = Field(
        default=None, description="A named profile: the exact bytes of one peer's quantizer."
    )
    rule: str | None = Field(
        default=None, description="Scale rule: even (default), floor, rceil, ceil or ceil_d(D)."
    )
    ties: str | None = Field(
        default=None, description="Tie rule of the elements: even (default), away or zero."
    )
    targets: list[str] = Field(
        default=[], description="Patterns of names to quantise; empty: every linear and expert weight."
    )
    ignore: list[str] = Field(
        default=[], description="Patterns of names to keep in high precision. Each must match something."
    )
    keep_defaults: StrictBool = Field(
        default=True,
        description="Keep output heads, embeddings, routers, gates, norms and draft layers as they are.",
    )
    family_defaults: StrictBool = Field(
        default=True,
        description="Keep what the table of model families keeps as well; with keep_defaults, and without targets.",
    )
    overrides: list[Override] = Field(default=[], description="What is different for some names.")
    activation: Activation = Field(default="none", description="How the backend is to quantise activations.")
    backend: str | None = Field(default=None, description="Backend to use; none named: chosen by verdicts.")
    fallback: str | None = Field(
        default=None, description="The one backend to use if no other accepts. Never implied."
    )
    backend_options: dict[str, dict[str, Any]] = Field(
        default={},
        description="Options for backends, by name; each checks its own when it is selected. With no backend named, "
        "options for several may stand side by side.",
    )
    dialect: str = Field(
        default="auto",
        description="How checkpoints are written; auto: in one that others load, where it can say everything.",
        json_schema_extra=lambda schema: schema.update(enum=["auto", *dialect_names()]),
    )
    refused: _Refused = Field(
        default="error",
        description="What no backend or loader can take: an error before a weight is read, or keep it, aloud.",
    )
    tail: _Tail = Field(
        default="refuse", description="Where K is no multiple of 32: refuse, or pad with exact zeros."
    )
    nonfinite: _NonFinite = Field(
        default="refuse", description="NaN or infinity in a weight: refuse, or write NaN blocks."
    )

    def resolved_profile(self) -> str:
        """Return the name of the profile that decides the bytes, for example ``quark`` or ``even/even``."""
        return profile_name(self.profile, self.rule, self.ties, self.format)

    def profile_for(self, override: Override | None) -> str:
        """Return the name of the profile for names that an override hits.

        An override that sets only the rule or only the ties inherits the other one from the config. One with another
        format than the config inherits rule and ties, and no profile: that is one of the config's format.

        Raises:
            ConfigError: the format of the override has no such profile.
        """
        format = self.format_for(override)
        if override is None or (override.profile, override.rule, override.ties) == (None, None, None):
            if format == self.format:
                return self.resolved_profile()
            return profile_name(None, self.rule, self.ties, format)
        if override.profile is not None:
            return profile_name(override.profile, None, None, format)
        return profile_name(None, override.rule or self.rule, override.ties or self.ties, format)

    def format_for(self, override: Override | None) -> str:
        """Return the name of the format that names become that an override hits."""
        return self.format if override is None or override.format is None else override.format

    def outcome_for(self, override: Override | None) -> tuple[str, Activation, str]:
        """Return profile, activation and format for names that an override hits.

        Raises:
            ConfigError: as `profile_for`.
        """
        return self.profile_for(override), self.activation_for(override), self.format_for(override)

    def formats(self) -> tuple[str, ...]:
        """Return every format that the config asks for, its own first; several where overrides set others."""
        return tuple(dict.fromkeys([self.format, *map(self.format_for, self.overrides)]))

    def activation_for(self, override: Override | None) -> Activation:
        """Return how activations are to be quantised for names that an override hits."""
        return self.activation if override is None or override.activation is None else override.activation

    def own_activation(self, pattern: str | None) -> Activation | None:
        """Return the mode of activations that the override with a pattern gives; None where it, or there, is none."""
        return next((each.activation for each in self.overrides if each.pattern == pattern), None)

    def activations(self, format: str | None = None) -> tuple[Activation, ...]:
        """Return every mode that the config asks for, its own first; several where overrides set others.

        Args:
            format: count only what becomes this one; everything if None.
        """
        cases = [None, *self.overrides]
        counted = [each for each in cases if format is None or self.format_for(each) == format]
        return tuple(dict.fromkeys(map(self.activation_for, counted or [None])))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data with every key that has a value; ``from_dict`` reads it back.

        ``format`` and ``family_defaults`` stand in it only where they are not the default, so that a config has the
        fingerprint that it had before there were others.
        """
        usual = {"format": self.format == "mxfp4", "family_defaults": self.family_defaults}
        left = {key for key, is_usual in usual.items() if is_usual}
        return self.model_dump(mode="json", exclude_none=True, exclude=left)

    def described(self) -> dict[str, Any]:
        """Return what a folder of ours says about itself: all but what belongs to a machine.

        ``activation`` stands in it only where somebody said it: else whoever loads the folder decides, as for weights
        in high precision.
        """
        left = {*MACHINE} if "activation" in self.model_fields_set else {*MACHINE, "activation"}
        return {key: value for key, value in self.to_dict().items() if key not in left}

    def fingerprint(self) -> str:
        """Return the sha256 of the canonical JSON: equal configs have equal fingerprints on every machine."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what ``to_dict`` wrote, or a dictionary written by hand.

        Raises:
            ConfigError: unknown or contradicting keys, wrong types, or a version that is not known here.
        """
        return cls.model_validate(data)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a ``.json`` or ``.toml`` file.

        Raises:
            ConfigError: the file cannot be read or parsed, repeats a key, or holds an invalid config.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            data = (
                tomllib.loads(text)
                if path.suffix == ".toml"
                else json.loads(text, object_pairs_hook=_no_repeats)
            )
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"config file {path} cannot be read",
                seen=str(error),
                rule="it is a text file",
                fix="check the path",
            ) from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"config file {path} cannot be parsed",
                seen=str(error),
                rule="a config file is JSON, or TOML if its name ends in .toml; no key appears twice",
                fix="correct it there",
            ) from None
        return cls.from_dict(data)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of a config file, as committed in ``docs/config.schema.json``."""
        schema = cls.model_json_schema()
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_arithmetic("config", self.profile, self.rule, self.ties)
        check_format("config", self.format, [self.profile])
        for each in self.overrides:
            check_format(f"override {each.pattern!r}", self.format_for(each), [each.profile])
        if self.dialect not in ("auto", *dialect_names()):
            raise unknown_name("dialect", self.dialect, ("auto", *dialect_names()))
        for key, name in (("backend", self.backend), ("fallback", self.fallback)):
            check_backend(key, name)
        if self.backend is not None and self.backend == self.fallback:
            raise contradiction(
                "config",
                f"backend and fallback are both {self.backend!r}",
                "a fallback is another backend than the first choice",
                "drop fallback, or name another one",
            )
        check_options(self.backend_options, self.backend, self.fallback)
        check_patterns(self.targets, self.ignore, self.overrides)
        check_inheritance(self.profile, self.overrides)
        return self


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} appears twice")
        result[key] = value
    return result


__all__ = ["CONFIG_VERSION", "KNOWN_BACKENDS", "PROFILE_NAMES", "TIES", "Mxfp4Config", "Override"]
