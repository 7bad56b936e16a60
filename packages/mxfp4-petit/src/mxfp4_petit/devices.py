"""The devices that the backend takes, and what is installed for them. Nothing here imports torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

MADE_FOR: Final = ("gfx90a", "gfx942")
"""AMD's CDNA2 and CDNA3 (MI200, MI300), which have no FP4 of their own: here the backend may be chosen unnamed."""

COMPILED: Final = {
    "hip": (*MADE_FOR, "gfx950"),
    "cuda": ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"),
}
"""What our own kernels were compiled for, by type of device; they ran on sm_90."""


@functools.cache
def installed(*distributions: str) -> str | None:
    """Return the version of the first of these distributions that is here, None without any.

    It takes a millisecond to look, and a model asks for each of its layers.
    """
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


@functools.cache
def importable(module: str) -> bool:
    """Say whether a module can be found; it is not imported."""
    return find_spec(module) is not None


def listed(names: Sequence[str]) -> str:
    """Join names for a sentence."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


__all__ = ["COMPILED", "MADE_FOR", "importable", "installed", "listed"]
