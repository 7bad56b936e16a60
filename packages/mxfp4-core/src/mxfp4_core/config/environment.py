"""The config of a process whose command line is somebody else's, such as that of an engine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.config.words import MACHINE
from mxfp4_core.errors import ConfigError

VARIABLE: Final = "MXFP4_CONFIG"
"""Environment variable with a config: the path of a .toml or .json file, or JSON that begins with a brace."""


def config_of_environment(text: str | None = None, **settings: Any) -> Mxfp4Config:
    """Return the config that ``MXFP4_CONFIG`` names or spells out; the default where it is not set.

    Args:
        text: what to read instead of the variable.
        settings: fields of `Mxfp4Config` that the caller has from elsewhere.

    Raises:
        ConfigError: the text is no config, or contradicts ``settings``.
    """
    given = _given(text)
    _agree({key: value for key, value in settings.items() if key in given}, given, "by the command")
    return Mxfp4Config.from_dict({**given, **settings})


def config_for_stored(stored: Mapping[str, Any], text: str | None = None) -> Mxfp4Config:
    """Return the config of a checkpoint that is quantised already, with what ``MXFP4_CONFIG`` says of the machine.

    Args:
        stored: fields of `Mxfp4Config` that the checkpoint says.
        text: what to read instead of the variable.

    Raises:
        ConfigError: the text asks for other weights than the checkpoint holds, or one of the two is no config.
    """
    given, file = _given(text), Mxfp4Config.from_dict(dict(stored))
    # A folder that does not say how activations are quantised leaves that to whoever loads it.
    left = {*MACHINE} if "activation" in file.model_fields_set else {*MACHINE, "activation"}
    said = {key: value for key, value in file.to_dict().items() if key not in left or key in stored}
    _agree({key: said.get(key) for key in given if key not in left}, given, "in the checkpoint")
    return Mxfp4Config.from_dict({**said, **{key: value for key, value in given.items() if key in left}})


def _given(text: str | None) -> dict[str, Any]:
    text = (os.environ.get(VARIABLE, "") if text is None else text).strip()
    if not text:
        return {}
    if not text.startswith("{"):
        return Mxfp4Config.from_file(text).model_dump(mode="json", exclude_unset=True)
    try:
        given: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"the config in {VARIABLE} cannot be read",
            seen=f"{error} in {text[:80]!r}",
            rule="it is the path of a .toml or .json file, or a JSON object",
            fix='write for instance {"rule": "floor"}, or a path',
        ) from None
    return given


def _agree(others: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    if wrong := {key: value for key, value in others.items() if given[key] != value}:
        raise ConfigError(
            f"{VARIABLE} contradicts what is said elsewhere",
            seen="; ".join(f"{key}: {given[key]!r}, but {value!r} {where}" for key, value in wrong.items()),
            rule=f"a setting has one value, and a checkpoint leaves only {', '.join(MACHINE)} open",
            fix=f"drop {' and '.join(wrong)} from the config, or say the same in both",
        )


__all__ = ["VARIABLE", "config_for_stored", "config_of_environment"]
