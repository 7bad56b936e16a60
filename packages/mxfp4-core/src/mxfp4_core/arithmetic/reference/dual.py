"""The judge of the format ``mxfp4-dual``: an FP32 scale for each 512 values above the scales of ``mxfp4``.

The formulas are those of CANN's DynamicDualLevelMxQuant: the outer scale is a sixth of the largest magnitude, quotients
go back to the dtype of the weight, and the inner level quantises these as if they were the weight. Products and
quotients are made in float64 and then rounded to float32, which gives what correctly rounded float32 arithmetic does.
"""

from __future__ import annotations

import torch

from mxfp4_core.arithmetic.format import GROUP
from mxfp4_core.arithmetic.profile import Level0, Profile
from mxfp4_core.arithmetic.reference import single

CANN = Level0(reciprocal=True, flush=True, narrow=True)
"""The outer scale of CANN's op, and of every pair of a rule and a tie rule."""

SIXTH = 0x3E2AAAAB
"""The float32 bits of 1 / 6."""


def outer(weight: torch.Tensor, level0: Level0) -> torch.Tensor:
    """Return the outer scales of whole groups.

    Args:
        weight: bfloat16, float16 or float32 ``[..., K]``, K a multiple of 512. What is not finite does not count.
        level0: how they are made.

    Returns:
        float32 ``[..., K / 512]``; zero for groups of zeros.
    """
    magnitude = weight.to(torch.float64).abs().unflatten(-1, (-1, GROUP))
    amax = torch.where(torch.isfinite(magnitude), magnitude, 0.0).amax(-1)
    sixth = torch.tensor(SIXTH, dtype=torch.int32, device=amax.device).view(torch.float32)
    scale = (amax * sixth.to(torch.float64) if level0.reciprocal else amax / 6.0).to(torch.float32)
    return torch.where(scale < 2.0**-126, 0.0, scale) if level0.flush else scale


def inner(weight: torch.Tensor, scale: torch.Tensor, level0: Level0) -> torch.Tensor:
    """Return what the outer scales leave of a weight: the quotients, in the dtype that the profile says.

    Args:
        weight: ``[..., K]``.
        scale: float32, broadcast against the weight. Under a scale of zero finite values become zeros of their sign.
        level0: how the quotients are rounded.
    """
    wide = weight.to(torch.float64)
    lost = torch.isfinite(wide) & (scale == 0)
    quotient = torch.where(lost, torch.copysign(torch.zeros_like(wide), wide), wide / scale.to(torch.float64))
    return quotient.to(torch.float32).to(weight.dtype if level0.narrow else torch.float32)


def quantize(weight: torch.Tensor, profile: Profile) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize whole groups.

    Args:
        weight: bfloat16, float16 or float32 ``[..., K]``, K a multiple of 512, any device.
        profile: what decides the bytes; its ``level0``, or CANN's where it has none.

    Returns:
        codes uint8 ``[..., K / 2]``, scales uint8 ``[..., K / 32]`` and level0 float32 ``[..., K / 512]``. A block of
        32 with a NaN or an infinity becomes byte 255 and zero codes; the other blocks of its group do not notice.
    """
    level0 = profile.level0 or CANN
    scale = outer(weight, level0)
    left = inner(weight.unflatten(-1, (-1, GROUP)), scale[..., None], level0)
    codes, scales = single.quantize(left.flatten(-2), profile)
    return codes, scales, scale


def dequantize(codes: torch.Tensor, scales: torch.Tensor, level0: torch.Tensor) -> torch.Tensor:
    """Return the values: code x 2**(byte - 127) x level0.

    Args:
        codes: uint8 ``[..., K / 2]``, low nibble first.
        scales: uint8 ``[..., K / 32]``.
        level0: float32 ``[..., K / 512]``.

    Returns:
        float64 ``[..., K]``, exact: 26 bits at most. NaN throughout the blocks whose byte is 255.
    """
    values = single.dequantize(codes, scales).unflatten(-1, (-1, GROUP))
    return (values * level0.to(torch.float64)[..., None]).flatten(-2)


def matmul(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, level0: torch.Tensor) -> torch.Tensor:
    """Return ``x @ W.T`` in float64.

    Args:
        x: any float dtype ``[..., m, k]``; k may end inside the last group, whose rest then counts as zero.
        codes: uint8 ``[n, Kp / 2]``.
        scales: uint8 ``[n, Kp / 32]``.
        level0: float32 ``[n, Kp / 512]``.

    Returns:
        float64 ``[..., m, n]``.
    """
    return x.to(torch.float64) @ dequantize(codes, scales, level0)[:, : x.shape[-1]].T


__all__ = ["CANN", "SIXTH", "dequantize", "inner", "matmul", "outer", "quantize"]
