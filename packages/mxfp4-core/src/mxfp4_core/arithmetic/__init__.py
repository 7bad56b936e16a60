"""The format and its arithmetic: bits, scale rules, profiles, the slow judge and the fast paths that equal it.

``reference`` is the judge; ``quantize`` and ``dequantize`` choose the fastest path that gives its bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.arithmetic.activations import fp8_static as fp8_static
    from mxfp4_core.arithmetic.activations import quantized as quantized
    from mxfp4_core.arithmetic.codec import Ties as Ties
    from mxfp4_core.arithmetic.fast.triton.quantize import quantize_triton as quantize_triton
    from mxfp4_core.arithmetic.fast.triton.toolchain import compiling as compiling
    from mxfp4_core.arithmetic.format import BITS_PER_VALUE as BITS_PER_VALUE
    from mxfp4_core.arithmetic.format import BLOCK as BLOCK
    from mxfp4_core.arithmetic.format import E2M1_MAX as E2M1_MAX
    from mxfp4_core.arithmetic.format import E2M1_THRESHOLDS as E2M1_THRESHOLDS
    from mxfp4_core.arithmetic.format import E2M1_VALUES as E2M1_VALUES
    from mxfp4_core.arithmetic.format import E4M3_MAX as E4M3_MAX
    from mxfp4_core.arithmetic.format import E8M0_BIAS as E8M0_BIAS
    from mxfp4_core.arithmetic.format import E8M0_MAX as E8M0_MAX
    from mxfp4_core.arithmetic.format import E8M0_MIN as E8M0_MIN
    from mxfp4_core.arithmetic.format import E8M0_NAN as E8M0_NAN
    from mxfp4_core.arithmetic.format import GROUP as GROUP
    from mxfp4_core.arithmetic.format import SIGN_BIT as SIGN_BIT
    from mxfp4_core.arithmetic.formats.base import Format as Format
    from mxfp4_core.arithmetic.formats.base import Part as Part
    from mxfp4_core.arithmetic.formats.dual import MXFP4_DUAL as MXFP4_DUAL
    from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4 as MXFP4
    from mxfp4_core.arithmetic.formats.mxfp8 import MXFP8 as MXFP8
    from mxfp4_core.arithmetic.formats.registry import get_format as get_format
    from mxfp4_core.arithmetic.gating import apply_gate as apply_gate
    from mxfp4_core.arithmetic.profile import Profile as Profile
    from mxfp4_core.arithmetic.profile import Zeros as Zeros
    from mxfp4_core.arithmetic.profiles import resolve as resolve
    from mxfp4_core.arithmetic.scales import RULES as RULES
    from mxfp4_core.arithmetic.scales import ScaleRule as ScaleRule
    from mxfp4_core.arithmetic.shapes import Alignment as Alignment
    from mxfp4_core.arithmetic.shapes import crop as crop
    from mxfp4_core.arithmetic.shapes import mx_bytes as mx_bytes
    from mxfp4_core.arithmetic.shapes import pad_weight as pad_weight
    from mxfp4_core.arithmetic.shapes import padded as padded
    from mxfp4_core.arithmetic.tensor import MxTensor as MxTensor

_HOMES = {
    "BITS_PER_VALUE": "format",
    "BLOCK": "format",
    "E2M1_MAX": "format",
    "E2M1_THRESHOLDS": "format",
    "E2M1_VALUES": "format",
    "E4M3_MAX": "format",
    "E8M0_BIAS": "format",
    "E8M0_MAX": "format",
    "E8M0_MIN": "format",
    "E8M0_NAN": "format",
    "GROUP": "format",
    "SIGN_BIT": "format",
    "apply_gate": "gating",
    "Alignment": "shapes",
    "crop": "shapes",
    "mx_bytes": "shapes",
    "pad_weight": "shapes",
    "padded": "shapes",
    "MxTensor": "tensor",
    "Format": "formats.base",
    "Part": "formats.base",
    "MXFP4": "formats.mxfp4",
    "MXFP4_DUAL": "formats.dual",
    "MXFP8": "formats.mxfp8",
    "compiling": "fast.triton.toolchain",
    "fp8_static": "activations",
    "get_format": "formats.registry",
    "quantize_triton": "fast.triton.quantize",
    "quantized": "activations",
    "resolve": "profiles",
    "Profile": "profile",
    "Zeros": "profile",
    "RULES": "scales",
    "ScaleRule": "scales",
    "Ties": "codec",
}

__all__ = [
    "BITS_PER_VALUE",
    "BLOCK",
    "E2M1_MAX",
    "E2M1_THRESHOLDS",
    "E2M1_VALUES",
    "E4M3_MAX",
    "E8M0_BIAS",
    "E8M0_MAX",
    "E8M0_MIN",
    "E8M0_NAN",
    "GROUP",
    "MXFP4",
    "MXFP4_DUAL",
    "MXFP8",
    "RULES",
    "SIGN_BIT",
    "Alignment",
    "Format",
    "MxTensor",
    "Part",
    "Profile",
    "ScaleRule",
    "Ties",
    "Zeros",
    "apply_gate",
    "compiling",
    "crop",
    "fp8_static",
    "get_format",
    "mx_bytes",
    "pad_weight",
    "padded",
    "quantize_triton",
    "quantized",
    "resolve",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
