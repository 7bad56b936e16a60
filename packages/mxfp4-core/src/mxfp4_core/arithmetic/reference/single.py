"""The judge of the format ``mxfp4``.

All arithmetic is float64 on exact inputs. A BF16, FP16 or FP32 weight divided by a power of two is exact in float64, so
nothing here rounds but where the profile says so.
"""

from __future__ import annotations

import torch

from mxfp4_core.arithmetic.codec import (
    decode,
    decode_scales,
    encode,
    encode_down,
    pack,
    power_of_two,
    unpack,
)
from mxfp4_core.arithmetic.format import BLOCK, E8M0_NAN, SIGN_BIT
from mxfp4_core.arithmetic.profile import FLUSH, Profile, Zeros


def quantize(weight: torch.Tensor, profile: Profile) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize whole blocks.

    Args:
        weight: bfloat16, float16 or float32 ``[..., K]``, K a multiple of 32, any device.
        profile: what decides the bytes.

    Returns:
        codes uint8 ``[..., K / 2]`` and scales uint8 ``[..., K / 32]``. A block with a NaN or an infinity becomes byte
        255 and zero codes.
    """
    blocks = weight.to(torch.float64).unflatten(-1, (-1, BLOCK))
    amax = blocks.abs().amax(-1)
    finite = torch.isfinite(amax)
    byte, divisor = profile.scale(torch.where(finite, amax, 0.0), weight.dtype)
    quotient = blocks.abs() * power_of_two(-divisor)[..., None]
    quotient = torch.where((divisor == FLUSH)[..., None], 0.0, quotient)
    sign = torch.signbit(blocks)
    index = encode_down(quotient, sign) if profile.down else encode(quotient, profile.ties)
    if profile.low_tie_up:
        index = torch.where(quotient == 0.25 - 2.0**-26, 1, index)
    codes = index | (_minus(sign, quotient, index, profile.zeros) * SIGN_BIT)
    codes = torch.where(finite[..., None], codes, 0).to(torch.uint8)
    scales = torch.where(finite, byte, E8M0_NAN).to(torch.uint8)
    return pack(codes.flatten(-2)), scales


def _minus(sign: torch.Tensor, quotient: torch.Tensor, index: torch.Tensor, zeros: Zeros) -> torch.Tensor:
    match zeros:
        case Zeros.KEEP:
            return sign
        case Zeros.PLUS:
            return sign & (index != 0)
        case Zeros.PLUS_INPUT:
            return sign & (quotient != 0)
        case Zeros.MINUS_INPUT:
            return sign | (quotient == 0)


def dequantize(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the exact values.

    Args:
        codes: uint8 ``[..., K / 2]``, low nibble first.
        scales: uint8 ``[..., K / 32]``.

    Returns:
        float64 ``[..., K]``; NaN throughout the blocks whose byte is 255.
    """
    values = decode(unpack(codes)).unflatten(-1, (-1, BLOCK))
    return (values * decode_scales(scales)[..., None]).flatten(-2)


def matmul(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return ``x @ W.T`` in float64.

    Args:
        x: any float dtype ``[..., m, k]``; k may end inside the last block, whose rest then counts as zero.
        codes: uint8 ``[n, Kp / 2]``.
        scales: uint8 ``[n, Kp / 32]``.

    Returns:
        float64 ``[..., m, n]``: what a kernel with exact products and exact sums would give.
    """
    return x.to(torch.float64) @ dequantize(codes, scales)[:, : x.shape[-1]].T


__all__ = ["dequantize", "matmul", "quantize"]
