"""MXFP4 on NVIDIA Hopper: W4A16 linear and MoE layers, a GPU quantizer, and Marlin's layouts.

Importing it touches no device and compiles nothing; what needs torch is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mxfp4_cuda_marlin.backend import backend

if TYPE_CHECKING:
    from mxfp4_cuda_marlin.boundary import find_scales as find_scales
    from mxfp4_cuda_marlin.boundary import scale_bytes as scale_bytes
    from mxfp4_cuda_marlin.layout import Sm90Layout as Sm90Layout
    from mxfp4_cuda_marlin.marlin import MarlinLayout as MarlinLayout

_HOMES = {
    "MarlinLayout": "marlin",
    "Sm90Layout": "layout",
    "find_scales": "boundary",
    "scale_bytes": "boundary",
}

__all__ = ["MarlinLayout", "Sm90Layout", "backend", "find_scales", "scale_bytes"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name at its first use (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
