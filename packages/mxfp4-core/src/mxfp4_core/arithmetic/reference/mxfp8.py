"""The judge of the format ``mxfp8``: E4M3 elements under E8M0 scales. OCP MX v1.0, sections 5.3.1, 5.4.1 and 6.3.

All arithmetic is float64 on exact inputs; elements round once, to the nearest E4M3 value, ties to even, and
saturate.
"""

from __future__ import annotations

import torch

from mxfp4_core.arithmetic.codec import decode_scales, power_of_two
from mxfp4_core.arithmetic.format import BLOCK, E4M3_MAX, E8M0_NAN
from mxfp4_core.arithmetic.profile import Profile

_SMALLEST = -6
"""Exponent of the smallest normal E4M3 value; subnormals have its step. Section 5.3.1."""
_MANTISSA = 3


def rounded(magnitude: torch.Tensor) -> torch.Tensor:
    """Return the nearest E4M3 value of each magnitude, ties to even; what is above 448 becomes 448.

    Args:
        magnitude: float64, any shape, not negative, finite.
    """
    _, exponent = torch.frexp(magnitude)  # magnitude = m * 2**exponent with m in [0.5, 1)
    step = power_of_two((exponent.to(torch.int64) - 1).clamp(min=_SMALLEST, max=8) - _MANTISSA)
    return (torch.round(magnitude / step) * step).clamp(max=E4M3_MAX)  # torch.round takes ties to even


def quantize(weight: torch.Tensor, profile: Profile) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize whole blocks.

    Args:
        weight: bfloat16, float16 or float32 ``[..., K]``, K a multiple of 32, any device.
        profile: what decides the bytes; its rule is one for E4M3.

    Returns:
        codes float8_e4m3fn ``[..., K]`` and scales uint8 ``[..., K / 32]``. A block with a NaN or an infinity becomes
        byte 255 and zero codes. The sign of zeros is kept.
    """
    blocks = weight.to(torch.float64).unflatten(-1, (-1, BLOCK))
    amax = blocks.abs().amax(-1)
    finite = torch.isfinite(amax)
    byte, divisor = profile.scale(torch.where(finite, amax, 0.0), weight.dtype)
    quotient = torch.where(finite[..., None], blocks.abs(), 0.0) * power_of_two(-divisor)[..., None]
    values = torch.copysign(rounded(quotient), blocks)
    values = torch.where(finite[..., None], values, 0.0).to(torch.float32)  # exact, as is the next step
    return values.to(torch.float8_e4m3fn).flatten(-2), torch.where(finite, byte, E8M0_NAN).to(torch.uint8)


def dequantize(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the exact values.

    Args:
        codes: float8_e4m3fn ``[..., K]``.
        scales: uint8 ``[..., K / 32]``.

    Returns:
        float64 ``[..., K]``; NaN throughout the blocks whose byte is 255, and where a code is NaN.
    """
    values = codes.to(torch.float64).unflatten(-1, (-1, BLOCK))
    return (values * decode_scales(scales)[..., None]).flatten(-2)


def matmul(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return ``x @ W.T`` in float64.

    Args:
        x: any float dtype ``[..., m, k]``; k may end inside the last block, whose rest then counts as zero.
        codes: float8_e4m3fn ``[n, Kp]``.
        scales: uint8 ``[n, Kp / 32]``.

    Returns:
        float64 ``[..., m, n]``.
    """
    return x.to(torch.float64) @ dequantize(codes, scales)[:, : x.shape[-1]].T


__all__ = ["dequantize", "matmul", "quantize", "rounded"]
