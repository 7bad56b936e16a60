"""The peers whose bytes are reproduced, one profile each.

``docs/scale-rules.md`` says in words what each does differently, and how equality was checked.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mxfp4_core.arithmetic.codec import Ties
from mxfp4_core.arithmetic.format import E8M0_BIAS
from mxfp4_core.arithmetic.profile import Level0, Profile, Zeros
from mxfp4_core.arithmetic.scales import E4M3_RULES, RULES


def _log2(value: torch.Tensor) -> torch.Tensor:
    """Return log2 rounded to float32, as the peers' libm does: a value 1 ulp off a power of two may land on it."""
    return torch.log2(value.to(torch.float64)).to(torch.float32)


def _ceil_log2_sixth(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # torchao to_mx RCEIL and ModelOpt MXFP4QTensor: ceil(log2(amax / 6)) with both steps rounded to float32.
    return torch.ceil(_log2(amax.to(torch.float32) / 6.0))


def _floor_log2(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # ggml quantize_row_mxfp4_ref and auto-round quant_mx: floor(log2f(amax)) - 2.
    return torch.floor(_log2(amax)) - 2


def _bits_of_sixth(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # triton_kernels: exponent field of float32(amax / 6), plus one if any mantissa bit is set.
    return _round_up(amax.to(torch.float32) / 6.0)


def _bits_times_sixth(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # AITER HIP multiplies by float32(1 / 6), which differs from the division for subnormal maxima.
    return _round_up(amax.to(torch.float32) * torch.tensor(1 / 6, dtype=torch.float32, device=amax.device))


def _round_up(scale: torch.Tensor) -> torch.Tensor:
    return ((scale.view(torch.int32) + 0x7FFFFF) >> 23) - E8M0_BIAS


def _msmodelslim_minmax(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # msmodelslim calculate_qparam: floor(log2(amax * 8/7 + 9.6e-7)) - 2, each step rounded to the dtype of the weight.
    return (torch.floor(torch.log2(amax.to(dtype) * (8 / 7) + 9.6e-7)).to(torch.float32) - 2).clamp(max=125)


_FLOOR, _EVEN, _RCEIL, _CEIL = RULES["floor"], RULES["even"], RULES["rceil"], RULES["ceil"]
_TORCHAO = "torchao 0.18.0, MXTensor.to_mx"

PEERS = (
    Profile(
        "compressed-tensors",
        _EVEN,
        Ties.EVEN,
        peer="compressed-tensors 0.20.0, MXFP4PackedCompressor",
        zeros=Zeros.PLUS_INPUT,
        byte_min=0,
        zero_byte=0,
        carry_byte=127,
        carry_flush=True,
    ),
    Profile(
        "quark",
        _EVEN,
        Ties.EVEN,
        peer="amd-quark 0.13, static weight export, scale_calculation_mode even",
        zeros=Zeros.PLUS,
        carry_byte=254,
        exponent_min=-127,
    ),
    Profile("torchao-floor", _FLOOR, Ties.EVEN, peer=_TORCHAO, byte_min=0, zero_byte=0, exponent_min=-126),
    Profile("torchao-ceil", _CEIL, Ties.EVEN, peer=_TORCHAO, byte_min=0, zero_byte=0, exponent_min=-126),
    Profile("torchao-even", _EVEN, Ties.EVEN, peer=_TORCHAO, byte_min=0, zero_byte=0, exponent_min=-126),
    Profile(
        "torchao-rceil",
        _RCEIL,
        Ties.EVEN,
        peer=_TORCHAO,
        byte_min=0,
        zero_byte=0,
        flush_below=-126,
        exponent=_ceil_log2_sixth,
    ),
    Profile(
        "aiter-triton",
        _EVEN,
        Ties.EVEN,
        peer="AITER e4048607, Triton dynamic_mxfp4_quant",
        byte_min=0,
        zero_byte=0,
        carry_byte=254,
    ),
    Profile(
        "aiter-triton-0.1.7",
        _EVEN,
        Ties.AWAY,
        peer="amd-aiter 0.1.7.post2, Triton dynamic_mxfp4_quant",
        byte_min=0,
        zero_byte=0,
        carry_byte=254,
    ),
    Profile(
        "aiter-hip",
        _RCEIL,
        Ties.EVEN,
        peer="AITER e4048607, mx_quant_utils.h round_up",
        byte_min=0,
        zero_byte=0,
        exponent=_bits_times_sixth,
    ),
    Profile(
        "vllm",
        _EVEN,
        Ties.EVEN,
        peer="vLLM 0.33.0, online downcast_to_mxfp",
        byte_min=0,
        zero_byte=0,
        carry_byte=254,
        dtypes=(torch.bfloat16, torch.float16),
    ),
    Profile(
        "triton-kernels",
        _RCEIL,
        Ties.EVEN,
        peer="triton_kernels 018a674f, downcast_to_mxfp_torch ROUND_UP",
        byte_min=0,
        zero_byte=0,
        exponent=_bits_of_sixth,
    ),
    Profile(
        "triton-kernels-old",
        _RCEIL,
        Ties.AWAY,
        peer="triton_kernels as shipped in vLLM 0.33.0, downcast_to_mxfp_torch ROUND_UP",
        byte_min=0,
        zero_byte=0,
        exponent=_bits_of_sixth,
    ),
    Profile(
        "modelopt",
        _RCEIL,
        Ties.ZERO,
        peer="nvidia-modelopt 0.47.0, MXFP4QTensor.quantize",
        zeros=Zeros.MINUS_INPUT,
        byte_min=0,
        zero_byte=0,
        exponent=_ceil_log2_sixth,
    ),
    Profile(
        "deepgemm",
        _RCEIL,
        Ties.ZERO,
        peer="DeepGEMM 54e2261, per_token_cast_to_fp4 with use_ue8m0",
        zeros=Zeros.PLUS,
        zero_byte=112,
        amax_min=1e-4,
    ),
    Profile("tilekernels", _RCEIL, Ties.EVEN, peer="TileKernels 36d9e45, cast e2m1 1x32 round_sf"),
    Profile(
        "gguf",
        _FLOOR,
        Ties.ZERO,
        peer="ggml d99724f2 quantize_row_mxfp4_ref, gguf-py 0.19.0",
        zeros=Zeros.PLUS,
        zero_byte=0,
        wrap=True,
        exponent=_floor_log2,
    ),
    Profile(
        "msmodelslim",
        _EVEN,
        Ties.AWAY,
        peer="msmodelslim 26.1.0, minmax",
        zeros=Zeros.PLUS_INPUT,
        byte_min=0,
        zero_byte=105,
        low_tie_up=True,
        exponent=_msmodelslim_minmax,
    ),
    Profile(
        "auto-round",
        _FLOOR,
        Ties.EVEN,
        peer="auto-round 0.16.1, data type mx_fp4",
        zeros=Zeros.PLUS_INPUT,
        byte_min=0,
        zero_byte=126,
        low_tie_up=True,
        exponent=_floor_log2,
    ),
)

# Ascend multiplies by 1/6 in float32; its op README gives the formulas, torch_npu its three round modes.
_ASCEND = Profile(
    "ascend",
    _FLOOR,
    Ties.EVEN,
    peer="CANN DynamicDualLevelMxQuant as documented, round_mode rint; not compared with a device",
    byte_min=0,
    zero_byte=0,
    level0=Level0(reciprocal=True, flush=True, narrow=True),
)
_MINMAX = next(profile for profile in PEERS if profile.name == "msmodelslim")

DUAL_PEERS = (
    _ASCEND,
    replace(_ASCEND, name="ascend-round", ties=Ties.AWAY, peer=_ASCEND.peer.replace("rint", "round")),
    replace(_ASCEND, name="ascend-floor", down=True, peer=_ASCEND.peer.replace("rint", "floor")),
    replace(
        _MINMAX,
        peer="msmodelslim 26.1.0, MXWeightDualScaleMinmax",
        level0=Level0(reciprocal=False, flush=False, narrow=False),
    ),
)
"""The peers of two levels."""

MXFP8_PROFILES = tuple(Profile(f"{rule.name}/{Ties.EVEN}", rule, Ties.EVEN) for rule in E4M3_RULES.values())
"""The profiles of ``mxfp8``: OCP MX v1.0, section 6.3 first."""

__all__ = ["DUAL_PEERS", "MXFP8_PROFILES", "PEERS"]
