"""What serving engines ask a quantization method, whichever engine it is: its name, config and releases.

An adapter's class for the method inherits `EngineMethod` before the engine's own base class.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from mxfp4_core.config.environment import config_for_stored, config_of_environment
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.native import NATIVE
from mxfp4_core.errors import ConfigError

METHODS: Mapping[str, Mapping[str, str]] = {NATIVE.name: {}, "mxfp8-core": {"format": "mxfp8"}}
"""Names of methods, and what each says of the config; the first one leaves the format to it."""


class EngineMethod:
    """The answers that are the same in every engine.

    Attributes:
        method: name of the method, of `METHODS`.
    """

    method: ClassVar[str] = NATIVE.name

    @classmethod
    def get_name(cls) -> str:
        """Return the name under which the engine knows this."""
        return cls.method

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Return the dtypes of activations; whether a backend takes one is asked for each layer."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Return the least compute capability: any, since backends say themselves what they need."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Return no files: without ``quantization_config`` in config.json, weights are quantised while they load."""
        return []

    @classmethod
    def asked(cls, text: str | None = None) -> Mxfp4Config:
        """Return the config by which weights are quantised while they load.

        Args:
            text: it as JSON, or its path; what ``MXFP4_CONFIG`` says if None.

        Raises:
            ConfigError: it is none, or contradicts the method.
        """
        config = config_of_environment(text, **METHODS[cls.method])
        for name, own in METHODS.items():
            if name != cls.method and own.get("format") == config.format:
                raise ConfigError(
                    f"the config contradicts --quantization {cls.method}",
                    seen=f"format {config.format!r}",
                    rule="a format that has a method of its own is chosen by that method",
                    fix=f"use --quantization {name}, or leave the format out of the config",
                )
        return config

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Mxfp4Config:
        """Return the config of a folder that is quantised already.

        Args:
            said: its ``quantization_config``, of any dialect, without keys that the engine adds.

        Raises:
            ConfigError: ``MXFP4_CONFIG`` asks for other weights than it holds.
        """
        own = NATIVE.settings(said) if said.get("quant_method") == NATIVE.name else {}
        return config_for_stored(own or METHODS[cls.method])


def config_and_facts(
    core: Mxfp4Config | None, settings: Mapping[str, Any], config: str
) -> tuple[Mxfp4Config, dict[str, Any]]:
    """Return the config that a library was given, and what ``config.json`` says beside it of single weights.

    Args:
        core: a config of the core, instead of settings.
        settings: keywords, or ``quantization_config`` of a folder of ours.
        config: what the library calls its config, for the message.

    Raises:
        ConfigError: both a config and settings, or settings that are none.
    """
    own = NATIVE.settings(settings)
    if core is not None and own:
        raise ConfigError(
            f"{config} takes a config or settings",
            seen=f"a config and {', '.join(own)}",
            rule="one of the two decides",
            fix="put the settings into the config",
        )
    facts = {key: value for key, value in settings.items() if key not in own}
    return Mxfp4Config.from_dict(own) if core is None else core, facts


def check_config(given: object, kind: type) -> None:
    """Refuse a config that is not the one of the package which is to load with it; each library has its own.

    Args:
        given: what the library was given for a method that several packages serve under one name.
        kind: the config of the package.

    Raises:
        ConfigError: it is another one.
    """
    if not isinstance(given, kind):
        package, other = kind.__module__.partition(".")[0], type(given).__module__.partition(".")[0]
        raise ConfigError(
            f"{package} cannot load with this quantization_config",
            seen=f"a {type(given).__name__} of {other}",
            rule="the library that loads a model takes the config of the package for that library",
            fix=f"pass {package}.Mxfp4Config with the same settings",
        )


def installed_release(engine: str, package: str, distributions: Sequence[str]) -> str:
    """Return the version of the installed engine, by its metadata.

    Args:
        engine: its name, for the message.
        package: that asks.
        distributions: what installs the engine, the usual one first.

    Raises:
        ConfigError: none of them is installed.
    """
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ConfigError(
        f"{package} is a plug-in of {engine}",
        seen=f"none of the distributions {', '.join(distributions)}",
        rule="it is installed into the environment of the engine",
        fix=f"pip install {' (or '.join(distributions)}{')' * (len(distributions) - 1)}",
    )


def check_release(
    found: str,
    first: tuple[int, ...],
    last: tuple[int, ...],
    *,
    engine: str,
    package: str,
    distribution: str,
) -> None:
    """Check that a release of an engine is one whose internals are known.

    Args:
        found: for example ``0.32.0+cpu``.
        first: the oldest one that will do; as many numbers as count.
        last: the newest one.
        engine: its name, for the message.
        package: that asks.
        distribution: what is installed to have the engine.

    Raises:
        ConfigError: it is older or newer, or no release.
    """
    numbers = re.match(r"\.".join([r"(\d+)"] * len(first)), found)
    if numbers and first <= tuple(map(int, numbers.groups())) <= last:
        return
    low, high = (".".join(map(str, each)) for each in (first, last))
    raise ConfigError(
        f"this release of {engine} is not supported",
        seen=f"{distribution} {found}",
        rule=f"{package} works with {low} to {high}: it uses names that {engine} keeps to itself",
        fix=f"install {distribution} {high}, or the release of {package} for yours",
    )


def check_free(
    method: str,
    taken: type[Any] | None,
    ours: type[Any],
    *,
    engine: str,
    fix: str = "do not import both, or ask for another release of the other one",
) -> None:
    """Check that the name of a method is ours to take: nobody has it, or this package.

    Args:
        method: the name.
        taken: the class that the engine has under it, if any.
        ours: the class that is to be registered.
        engine: its name.
        fix: how people choose between two packages there.

    Raises:
        ConfigError: another package has the name.
    """
    if taken is None or taken.__module__.split(".")[0] == ours.__module__.split(".")[0]:
        return
    raise ConfigError(
        f"the quantization method {method!r} cannot be registered in {engine}",
        seen=f"{taken.__module__}.{taken.__qualname__} has that name",
        rule="one package serves a method",
        fix=fix,
    )


def refused_table(name: str, kind: str, reason: str, *, engine: str) -> ConfigError:
    """Return the error about an embedding or output head that a config wants quantised in an engine.

    Args:
        name: of the layer.
        kind: its class in the engine.
        reason: why it would be quantised.
        engine: its name.
    """
    return ConfigError(
        f"{name} cannot be MXFP4 in {engine}",
        seen=f"a {kind}: {reason}",
        rule="linear layers and routed experts hold MXFP4 weights there",
        fix=f"keep it in high precision: ignore=[{name!r}]",
    )


__all__ = [
    "METHODS",
    "EngineMethod",
    "check_config",
    "check_free",
    "check_release",
    "config_and_facts",
    "installed_release",
    "refused_table",
]
