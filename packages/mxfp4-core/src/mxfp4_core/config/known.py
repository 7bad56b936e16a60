"""Names that a config may use: backends of this project, installed or not, and the dialects that are installed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from mxfp4_core._plugins import DIALECTS, plugins


@dataclass(frozen=True)
class Known:
    """A backend of this project that may not be installed, and the devices it is for.

    Attributes:
        distribution: that brings it.
        device: type of the devices that it is made for.
        archs: how their architectures begin.
        others: types of devices by the name of a further format of weights that it takes there.
    """

    distribution: str
    device: str
    archs: tuple[str, ...]
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def fits(self, device: str, arch: str, format: str = "mxfp4") -> bool:
        """Say whether installing it could help on a device; an unknown architecture counts as possible."""
        if format != "mxfp4":
            return device in self.others.get(format, ())
        return device == self.device and (arch == "unknown" or arch.lower().startswith(self.archs))


KNOWN: Final = MappingProxyType(
    {
        "cuda-marlin": Known("mxfp4-cuda-marlin", "cuda", ("sm_90",)),
        "npu": Known("mxfp4-npu", "npu", ("",), {"mxfp4-dual": ("npu",)}),
        "petit": Known("mxfp4-petit", "hip", ("gfx90a", "gfx942"), {"mxfp8": ("cuda", "hip")}),
        "rocm": Known("mxfp4-rocm", "hip", ("gfx95",)),
    }
)
"""By name; the reference backend is no part of it, because it comes with the core."""

NATIVE_NAME: Final = "mxfp4-core"
"""Our own dialect."""


def dialect_names() -> tuple[str, ...]:
    """Return the names of all installed dialects, our own first. Nothing is imported."""
    return tuple(sorted(plugins(DIALECTS), key=lambda name: (name != NATIVE_NAME, name)))


__all__ = ["KNOWN", "NATIVE_NAME", "Known", "dialect_names"]
