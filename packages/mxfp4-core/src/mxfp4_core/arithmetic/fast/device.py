"""The quantizer as torch operations, for devices other than CPUs: the same integer comparisons as the CPU kernels."""

from __future__ import annotations

import numpy as np
import torch

from mxfp4_core.arithmetic.fast.steps import SPECIAL, steps
from mxfp4_core.arithmetic.format import BLOCK, SIGN_BIT
from mxfp4_core.arithmetic.profile import Profile, Zeros


def sign_masks(profile: Profile) -> np.ndarray:
    """Return masks that drop the sign of zero codes, the sign that zero weights gain, and the byte of zero blocks."""
    plus = -1 if profile.zeros is Zeros.PLUS else 0
    exact = -1 if profile.zeros is Zeros.PLUS_INPUT else 0
    minus = SIGN_BIT if profile.zeros is Zeros.MINUS_INPUT else 0
    return np.array([plus, exact, minus, profile.zero_byte], dtype=np.int32)


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
    index = torch.zeros_like(quotient, dtype=torch.uint8)
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
    return int((exponent == SPECIAL).sum())


__all__ = ["quantize", "sign_masks"]
