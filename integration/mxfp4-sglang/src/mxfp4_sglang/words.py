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

FORMATS: Final[Mapping[str, str]] = {METHOD: "mxfp4", METHOD_FP8: "mxfp8"}
"""The format that each method quantises to while it loads."""

FIRST, LAST = (0, 5, 17), (0, 5, 23)
"""Releases of SGLang whose names in `compat` were read; 0.5.21 runs in CI."""

FIRST_DIFFUSION = (0, 5, 21)
"""The first release whose diffusion server loads plug-ins in each of its processes."""

ABSORBED: Final = ("kv_b_proj",)
"""Linears whose weight SGLang multiplies with by itself, before it says that weights are loaded: absorbed attention."""


def installed_version() -> str:
    """Return the version of the installed engine, by its metadata.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return version("sglang")
    except PackageNotFoundError:
        raise ConfigError(
            "mxfp4-sglang is a plug-in of SGLang",
            seen="no distribution sglang",
            rule="it is installed into the environment of the engine",
            fix="pip install sglang",
        ) from None


def check_version(found: str, first: tuple[int, int, int] = FIRST) -> None:
    """Check that a release of SGLang is one whose internals are known here.

    Args:
        found: for example ``0.5.21`` or ``0.5.21.post1``.
        first: the oldest one that will do.

    Raises:
        ConfigError: it is older or newer, or no release.
    """
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", found)
    if numbers and first <= tuple(map(int, numbers.groups())) <= LAST:
        return
    low, high = (".".join(map(str, each)) for each in (first, LAST))
    kind = "SGLang" if first == FIRST else "SGLang's diffusion server"
    raise ConfigError(
        f"this release of {kind} is not supported",
        seen=f"sglang {found}",
        rule=f"mxfp4-sglang works with {low} to {high}: it uses names that SGLang keeps to itself",
        fix=f"install sglang {high}, or the release of mxfp4-sglang for yours",
    )


def renames(pairs: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """Return pairs (engine, checkpoint) of runs that mean the same, from SGLang's table of prefixes.

    Args:
        pairs: ``WeightsMapper.orig_to_new_prefix``: from the checkpoint to the engine; None for what it drops.
    """
    return [(f"^{new.strip('.')}", f"^{old.strip('.')}") for old, new in pairs.items() if new is not None]


__all__ = [
    "ABSORBED",
    "FIRST",
    "FIRST_DIFFUSION",
    "FORMATS",
    "LAST",
    "METHOD",
    "METHOD_FP8",
    "check_version",
    "installed_version",
    "renames",
]
