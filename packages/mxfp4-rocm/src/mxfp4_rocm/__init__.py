"""MXFP4 on AMD CDNA4 (gfx95x): native FP4 linear and MoE layers through AITER's kernels, and AITER's layouts.

Importing it touches no device and no AITER; what needs torch is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mxfp4_rocm.backend import backend

if TYPE_CHECKING:
    from mxfp4_rocm.layout import shuffle_weight as shuffle_weight
    from mxfp4_rocm.layout import swizzle_scales as swizzle_scales
    from mxfp4_rocm.layout import unshuffle_weight as unshuffle_weight
    from mxfp4_rocm.layout import unswizzle_scales as unswizzle_scales

_LAYOUT = ("shuffle_weight", "swizzle_scales", "unshuffle_weight", "unswizzle_scales")

__all__ = ["backend", "shuffle_weight", "swizzle_scales", "unshuffle_weight", "unswizzle_scales"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name at its first use (PEP 562)."""
        if name not in _LAYOUT:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.layout"), name)
        return value
