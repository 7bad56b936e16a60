"""MXFP4 for every accelerator: the format, exact quantizers, loading, checkpoints and conformance tests.

Nothing is imported until it is used: ``import mxfp4_core`` costs nothing, and what needs no torch runs without it.
"""

from __future__ import annotations

from mxfp4_core._exports import exports

TYPE_CHECKING = (
    False  # a type checker knows better; importing typing would cost most of the time of this import
)

# A module must not share the name of a public function: importing it would put the module in the function's place.
if TYPE_CHECKING:
    from mxfp4_core.arithmetic.dequantize import dequantize as dequantize
    from mxfp4_core.arithmetic.profiles import profiles as profiles
    from mxfp4_core.arithmetic.quantize import quantize as quantize
    from mxfp4_core.arithmetic.quantize import quantize_into as quantize_into
    from mxfp4_core.arithmetic.tensor import MxTensor as MxTensor
    from mxfp4_core.backend.select import select_backend as select_backend
    from mxfp4_core.config import Mxfp4Config as Mxfp4Config
    from mxfp4_core.errors import Mxfp4Error as Mxfp4Error

__version__ = "0.1.0"

_HOMES = {
    "Mxfp4Config": "config",
    "Mxfp4Error": "errors",
    "MxTensor": "arithmetic.tensor",
    "dequantize": "arithmetic.dequantize",
    "profiles": "arithmetic.profiles",
    "quantize": "arithmetic.quantize",
    "quantize_into": "arithmetic.quantize",
    "select_backend": "backend.select",
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

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
