"""How AITER quantises inside its fused MoE: two named rules, which the package registers with the core.

Both round the scale up where the mantissa of the block's largest magnitude is at least 1.5, so that 6 times a power of
two is the first value that gets the next scale; values are rounded to the nearest, ties to even, and saturate at 6.
"""

from __future__ import annotations

from dataclasses import replace

from mxfp4_core.arithmetic import Profile, ScaleRule, Ties

HIP_OLD = Profile(
    "aiter-hip-0.1.7",
    ScaleRule("below-6", 6.0, strict=True),
    Ties.EVEN,
    peer="amd-aiter 0.1.7.post2, per_1x32_f4_quant_hip: tokens and hidden states of fused_moe in two stages",
    byte_min=0,
    zero_byte=92,
    amax_min=1e-10,
)
"""Maxima below 1e-10 count as 1e-10, a block of zeros gets the byte of that: 92."""

FUSED_MOE = replace(
    HIP_OLD,
    name="aiter-fused-moe",
    peer="amd-aiter 0.1.7.post2, machine code of fmoe_bf16_pertokenMXfp4_g1u1: hidden states of fused_moe in one stage",
    zero_byte=105,
    amax_min=1e-6,
)
"""Maxima below 1e-6 count as 1e-6, a block of zeros gets the byte of that: 105."""

__all__ = ["FUSED_MOE", "HIP_OLD"]
