"""AITER's own Triton sources, out of the unpacked wheel, without AITER: ``import aiter`` would ask for a device.

``install`` puts empty packages in the place of those whose import does something, and answers for the architecture.
What is imported after that, kernels and the functions that launch them, is the vendor's file. One process, one purpose:
nothing is put back.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

TRITON = "aiter.ops.triton"
PACKAGES = (
    "aiter",
    "aiter.ops",
    TRITON,
    f"{TRITON}._triton_kernels",
    "aiter.utility",
    "aiter.utility.triton",
)


def install(wheel: Path, arch: str = "gfx950") -> None:
    """Make the modules of a wheel importable.

    Args:
        wheel: folder with ``aiter``.
        arch: what AITER is told about the device.
    """
    for name in PACKAGES:
        module = sys.modules[name] = ModuleType(name)
        module.__spec__ = ModuleSpec(
            name, None, is_package=True
        )  # by it the files are found, for their arguments
        module.__path__ = module.__spec__.submodule_search_locations = [str(wheel / name.replace(".", "/"))]
    info = ModuleType(f"{TRITON}.utils._triton.arch_info")
    info.get_arch = lambda: arch  # type: ignore[attr-defined]
    info.get_device = lambda: "MI350X"  # type: ignore[attr-defined]
    info.is_fp4_avail = info.is_fp8_avail = lambda: True  # type: ignore[attr-defined]
    sys.modules[info.__name__] = info
    import_module(f"{TRITON}.utils._triton").arch_info = info  # type: ignore[attr-defined]


def module(name: str) -> Any:
    """Import a module of AITER's Triton operators, such as ``quant`` or ``_triton_kernels.quant``."""
    return import_module(f"{TRITON}.{name}")
