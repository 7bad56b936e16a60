"""MXFP4 on AMD CDNA2 and CDNA3: W4A16 linear and MoE layers, with weights widened in registers.

Importing it touches no device, and imports neither Triton nor petit-kernel; what needs them imports them when used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mxfp4_petit.backend import backend

if TYPE_CHECKING:
    from mxfp4_petit.portable.layout import PortableLayout as PortableLayout
    from mxfp4_petit.vendor.layout import PetitLayout as PetitLayout
    from mxfp4_petit.vendor.moe_layouts import MoeLayout as MoeLayout

_HOMES = {
    "MoeLayout": "vendor.moe_layouts",
    "PetitLayout": "vendor.layout",
    "PortableLayout": "portable.layout",
}

__all__ = ["MoeLayout", "PetitLayout", "PortableLayout", "backend"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name at its first use (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
