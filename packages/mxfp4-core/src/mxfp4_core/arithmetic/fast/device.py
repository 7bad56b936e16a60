"""The quantizers as torch operations, for any device: the same integer comparisons as the CPU kernels."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch

from mxfp4_core.arithmetic.fast.steps import E4M3_EXPONENT_MIN, SPECIAL, Steps, sign_masks, steps
from mxfp4_core.arithmetic.format import BLOCK, E2M1_VALUES, GROUP, SIGN_BIT
from mxfp4_core.arithmetic.profile import Level0, Profile
from mxfp4_core.arithmetic.reference import dual

_NORMAL: Final = 2.0**-126
"""The smallest normal float32."""


def divide(weight: torch.Tensor, level0: torch.Tensor, how: Level0) -> torch.Tensor:
    """Write the outer scales of a matrix of whole groups, and return what they leave, as `reference.dual` does.

    Args:
        weight: bfloat16, float16 or float32 ``[N, K]``.
        level0: float32 ``[N, K / 512]``, written.
        how: how the scales are made.
    """
    groups = weight.to(torch.float32).unflatten(-1, (-1, GROUP))
    finite = torch.isfinite(groups)
    amax = torch.where(finite, groups.abs(), 0.0).amax(-1)
    if how.reciprocal:
        sixth = torch.tensor(dual.SIXTH, dtype=torch.int32).view(torch.float32).item()
        scale = amax * sixth
    else:
        scale = amax / torch.full_like(
            amax, 6.0
        )  # by a tensor: a compiler may turn a number into its reciprocal
    if how.flush:
        scale = torch.where(scale < _NORMAL, 0.0, scale)
    level0.copy_(scale)
    scale = scale[..., None]
    quotient = torch.where(
        finite & (scale == 0), torch.copysign(torch.zeros_like(groups), groups), groups / scale
    )
    return quotient.flatten(-2).to(weight.dtype if how.narrow else torch.float32)


def _scaled(
    weight: torch.Tensor, scales: torch.Tensor, profile: Profile, table: Steps
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Write the scale bytes; return the float32 bits, their magnitudes, quotients as bits, and the special blocks."""
    device = weight.device
    blocks = weight.to(torch.float32).unflatten(-1, (-1, BLOCK)).view(torch.int32)
    magnitude = blocks & 0x7FFFFFFF
    largest = magnitude.amax(-1)
    binade = (largest >> 23).long()
    side = ((largest & 0x7FFFFF) >= table.mantissa.to(device)[binade]).long()
    zero = largest == 0
    exponent = table.exponent.to(device)[side, binade].masked_fill(zero, 0)
    scales.copy_(table.byte.to(device)[side, binade].masked_fill(zero, profile.zero_byte))
    # A special block's quotient is nonsense that the reference overwrites.
    quotient = magnitude - (exponent << 23)[..., None]
    return blocks, magnitude, quotient, int((exponent == SPECIAL).sum())


def quantize(weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, profile: Profile) -> int:
    """Quantize a matrix of whole blocks.

    Args:
        weight: bfloat16, float16 or float32 ``[N, K]``.
        codes: uint8 ``[N, K / 2]``, written.
        scales: uint8 ``[N, K / 32]``, written.
        profile: what decides the bytes.

    Returns:
        How many blocks are left to the reference; their scale byte is 255.
    """
    table = steps(profile, weight.dtype)
    blocks, magnitude, quotient, special = _scaled(weight, scales, profile, table)
    index = torch.zeros_like(quotient, dtype=torch.uint8)
    if profile.down:
        values = torch.tensor(E2M1_VALUES[1:8], dtype=torch.float32).view(torch.int32).tolist()
        negative = blocks < 0
        index += torch.where(negative, magnitude > 0, quotient >= values[0])
        for below, value in pairwise(values):
            index += torch.where(negative, quotient > below, quotient >= value)
    else:
        for threshold in table.thresholds.tolist():
            index += quotient >= threshold
        index += quotient == table.lifted
    sign = ((blocks >> 28) & SIGN_BIT).to(torch.uint8)
    plus, exact, minus, _ = (int(mask) for mask in sign_masks(profile))
    sign = sign.masked_fill((index == 0), 0) if plus else sign
    sign = sign.masked_fill((magnitude == 0), 0) if exact else sign
    sign = sign.masked_fill((magnitude == 0), SIGN_BIT) if minus else sign
    packed = (index | sign).flatten(-2)
    codes.copy_(packed[..., 0::2] | (packed[..., 1::2] << 4))
    return special


def quantize_e4m3(weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, profile: Profile) -> int:
    """Quantize a matrix of whole blocks to E4M3.

    Args:
        weight: bfloat16, float16 or float32 ``[N, K]``.
        codes: float8_e4m3fn ``[N, K]``, written.
        scales: uint8 ``[N, K / 32]``, written.
        profile: what decides the bytes.

    Returns:
        How many blocks are left to the reference; their scale byte is 255.
    """
    table = steps(profile, weight.dtype, E4M3_EXPONENT_MIN)
    blocks, _, quotient, special = _scaled(weight, scales, profile, table)
    # Normal values: drop 20 of 23 mantissa bits to the nearest, ties to even; the exponents' biases differ by 120.
    normal = ((quotient + 0x7FFFF + ((quotient >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2**-6 the steps are 2**-9, which is the last bit of 2**14: that addition rounds, ties to even.
    small = quotient.clamp(min=0).view(torch.float32) + 2.0**14
    small = small.view(torch.int32) - (141 << 23)
    index = torch.where(quotient >= (121 << 23), normal, small).clamp(max=0x7E)
    byte = (index | ((blocks >> 24) & 0x80)).to(torch.uint8)
    codes.view(torch.uint8).copy_(byte.flatten(-2))
    return special


__all__ = ["divide", "quantize", "quantize_e4m3"]
