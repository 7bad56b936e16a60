"""The one configuration: what to quantise, by which rule, for which backend, written in which dialect.

The same schema is used by every entry point (Python, command line, adapters) and is stored in the files that
are written. ``docs/config.md`` explains each key; ``docs/config.schema.json`` is the exported JSON Schema.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StrictBool,
    StrictInt,
    ValidationError,
    model_validator,
)

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
from mxfp4_core.config.messages import contradiction, explain, listed, unknown_name
from mxfp4_core.config.patterns import Pattern
from mxfp4_core.config.words import Activation
from mxfp4_core.errors import ConfigError

CONFIG_VERSION: Final = 1
"""Version of this schema. A file with a higher one is refused: its keys could mean something unknown here."""

_Tail = Literal["refuse", "pad"]
_Refused = Literal["error", "keep"]
_NonFinite = Literal["refuse", "nan"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _as_config_error(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # Raised from a wrap validator, so that every way of building the model reports in our words. The version
        # goes first: under another version, complaints about keys would only mislead.
        version = data.get("version") if isinstance(data, dict) and "version" in cls.model_fields else None
        if type(version) is int and version != CONFIG_VERSION:
            raise ConfigError(
                "this config has another version",
                seen=f"version = {version}",
                rule=f"this release reads version {CONFIG_VERSION}",
                fix="upgrade mxfp4-core" if version > CONFIG_VERSION else f"write version = {CONFIG_VERSION}",
            )
        try:
            return handler(data)
        except ValidationError as error:
            raise explain(error, data, _TITLES[cls.__name__], list(cls.model_fields)) from None


class Override(_Model):
    """What is different for the names that one pattern hits."""

    pattern: str = Field(description="Names that this override is for.")
    profile: str | None = Field(default=None, description="Profile for these weights.")
    rule: str | None = Field(default=None, description="Scale rule for these weights.")
    ties: str | None = Field(default=None, description="Tie rule for these weights.")
    activation: Activation | None = Field(
        default=None, description="How the backend is to quantise the activations of these weights."
    )
    keep: StrictBool | None = Field(
        default=None,
        description="True: keep in high precision. False: quantise even what the defaults keep.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        what = f"override {self.pattern!r}"
        Pattern.parse(self.pattern)
        arithmetic = check_arithmetic(what, self.profile, self.rule, self.ties)
        settings = ", ".join(filter(None, [arithmetic, listed(activation=self.activation)]))
        if self.keep and settings:
            raise contradiction(
                what,
                f"keep = true with {settings}",
                "a weight that is kept has no rule and no activation",
                "drop one",
            )
        if self.keep is None and not settings:
            fix = "give it keep, profile, rule, ties or activation"
            raise contradiction(what, "a pattern and nothing else", "an override changes something", fix)
        return self


class Mxfp4Config(_Model):
    """What to quantise, how, for which backend, and how to write it.

    Every way of building one (constructor, ``from_dict``, ``from_file``) raises ``ConfigError``.
    """

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

        An override that sets only the rule or only the ties inherits the other one from the config.
        """
        if override is None or (override.profile, override.rule, override.ties) == (None, None, None):
            return self.resolved_profile()
        if override.profile is not None:
            return profile_name(override.profile, None, None, self.format)
        return profile_name(None, override.rule or self.rule, override.ties or self.ties, self.format)

    def activation_for(self, override: Override | None) -> Activation:
        """Return how activations are to be quantised for names that an override hits."""
        return self.activation if override is None or override.activation is None else override.activation

    def activations(self) -> tuple[Activation, ...]:
        """Return every mode that the config asks for, its own first; several where overrides set others."""
        return tuple(dict.fromkeys([self.activation, *map(self.activation_for, self.overrides)]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data with every key that has a value; ``from_dict`` reads it back.

        The format stands in it only where it is another one than ``mxfp4``, so that a config has the fingerprint that
        it had before there were others.
        """
        return self.model_dump(
            mode="json", exclude_none=True, exclude={"format"} if self.format == "mxfp4" else None
        )

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
        check_format(self.format, [self.profile, *(override.profile for override in self.overrides)])
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


_TITLES: Final = {"Override": "an override", "Mxfp4Config": "the config"}


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} appears twice")
        result[key] = value
    return result


__all__ = ["CONFIG_VERSION", "KNOWN_BACKENDS", "PROFILE_NAMES", "TIES", "Mxfp4Config", "Override"]
