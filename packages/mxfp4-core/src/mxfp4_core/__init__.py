"""MXFP4 for every accelerator: the format, exact quantizers, loading, checkpoints and conformance tests.

Nothing is imported until it is used: ``import mxfp4_core`` costs nothing, and what needs no torch runs without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# A module must not share the name of a public function: importing it would put the module in the function's place.
if TYPE_CHECKING:
    from mxfp4_core.config import Mxfp4Config as Mxfp4Config
    from mxfp4_core.dequantizer import dequantize as dequantize
    from mxfp4_core.errors import Mxfp4Error as Mxfp4Error
    from mxfp4_core.profile import profiles as profiles
    from mxfp4_core.quantizer import quantize as quantize
    from mxfp4_core.quantizer import quantize_into as quantize_into
    from mxfp4_core.select import select_backend as select_backend
    from mxfp4_core.tensor import MxTensor as MxTensor

__version__ = "0.1.0"

_HOME = {
    "Mxfp4Config": "config",
    "Mxfp4Error": "errors",
    "MxTensor": "tensor",
    "dequantize": "dequantizer",
    "profiles": "profile",
    "quantize": "quantizer",
    "quantize_into": "quantizer",
    "select_backend": "select",
}

__all__ = [
    "MxTensor",
    "Mxfp4Config",
    "Mxfp4Error",
    "dequantize",
    "profiles",
    "quantize",
    "quantize_into",
    "select_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mxfp4_core' has no attribute {name!r}")
    value = getattr(import_module(f"mxfp4_core.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
