"""The words of this package that need no engine: names of methods, supported versions, names of layers."""

from __future__ import annotations

from typing import Final

from mxfp4_core.loader import METHODS, check_release, installed_release

METHOD, METHOD_FP8 = METHODS
"""``--quantization`` for MXFP4, which saved folders say, too; and for MXFP8, 8-bit values with the same scales."""

FIRST, LAST = (0, 5, 17), (0, 5, 23)
"""Releases of SGLang whose names in `compat` were read; 0.5.21 runs in CI."""

FIRST_DIFFUSION = (0, 5, 21)
"""The first release whose diffusion server loads plug-ins in each of its processes."""

STACKED: Final = ("gpt_oss",)
"""Types of models whose class in SGLang takes all experts of a layer at once, under the names of the library."""

ABSORBED: Final = ("kv_b_proj",)
"""Linears whose weight SGLang multiplies with by itself, before it says that weights are loaded: absorbed attention."""


def installed_version() -> str:
    """Return the version of the installed engine, by its metadata.

    Raises:
        ConfigError: it is not installed.
    """
    return installed_release("SGLang", "mxfp4-sglang", ["sglang"])


def check_version(found: str, first: tuple[int, int, int] = FIRST) -> None:
    """Check that a release of SGLang is one whose internals are known here.

    Args:
        found: for example ``0.5.21`` or ``0.5.21.post1``.
        first: the oldest one that will do.

    Raises:
        ConfigError: it is older or newer, or no release.
    """
    kind = "SGLang" if first == FIRST else "SGLang's diffusion server"
    check_release(found, first, LAST, engine=kind, package="mxfp4-sglang", distribution="sglang")


__all__ = [
    "ABSORBED",
    "FIRST",
    "FIRST_DIFFUSION",
    "LAST",
    "METHOD",
    "METHOD_FP8",
    "STACKED",
    "check_version",
    "installed_version",
]
