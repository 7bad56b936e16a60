"""The right input of a product that quantises it, and how far from it a correct one may be.

A hidden state is known only up to the errors of the sums before it, and a quantizer turns a small difference into a
whole step where a value lies near the middle of two codes. For given scales a quantizer is monotone, so that a value
between ``a`` and ``b`` gives a result between ``Q(a)`` and ``Q(b)``; and the scale of a block lies between those of the
smallest and the largest maximum that the block may have. Both together are the bound, which is zero wherever no code
can change.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from mxfp4_core import quantize
from mxfp4_core.arithmetic.activations import FP8_GROUP, fp8
from mxfp4_core.arithmetic.codec import encode, power_of_two
from mxfp4_core.arithmetic.format import BLOCK, E4M3_MAX, E8M0_BIAS, GROUP
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.arithmetic.profile import Profile
from mxfp4_core.arithmetic.reference.mxfp8 import rounded as e4m3
from mxfp4_core.testing.answer import EPS32, FLUSHED, Answer

VALUES: Final = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
STEPS: Final = {"mxfp4": 0.4, "mxfp4-dual": 0.4, "mxfp8": 0.125, "fp8": 0.125}
"""The largest step between two codes, relative to the larger one or to what is common in a block."""

SLACK: Final = 4 * EPS32
"""Relative: a scale that is a quotient may be made as a product with a reciprocal."""


def quantized(x: Answer, kind: str, profile: str, dtype: torch.dtype) -> Answer:
    """Answer x after a trip through a format.

    Args:
        x: [..., k], finite or not; a block with a value that is not finite is NaN.
        kind: as `input_format` returns it, not ``none``.
        profile: by which rule; empty for the format's own.
        dtype: of the values that are quantised, float32 or that of the activations.

    Returns:
        The nominal result, of ``x.value`` rounded to ``dtype``, and its bound.
    """
    k, values = x.value.shape[-1], x.value.to(dtype)
    if kind == "fp8":
        low, high = _ends(x, FP8_GROUP, _fp8)
        nominal = fp8(values)
    else:
        chosen = get(kind).resolve(profile or None)
        made = quantize(values, format=kind, profile=chosen.name, tail="pad", nonfinite="nan")
        nominal = made.dequantize(torch.float32)
        if kind == "mxfp4-dual":
            low, high = _ends(x, GROUP, partial(_dual, profile=chosen, dtype=dtype))
        else:
            low, high = _ends(x, BLOCK, partial(_block, kind=kind, profile=chosen, dtype=dtype))
    value = nominal.to(torch.float64)
    bound = torch.maximum(high[..., :k] - value, value - low[..., :k]).clamp(min=0)
    return Answer(value, bound + value.abs() * EPS32)


def noise(kind: str, error: float) -> float:
    """Return how much a quantizer makes of an error, both relative to the norm of what is quantised.

    A step of size s is taken with the probability e / s where a value is off by e, so the variance is e s.

    Args:
        kind: as for `quantized`.
        error: of the values that are quantised.
    """
    return float((error * STEPS[kind]) ** 0.5)


_Ends = tuple[Tensor, Tensor]


def _ends(x: Answer, size: int, step: Callable[[Tensor, Tensor], _Ends]) -> _Ends:
    """Return the ends of each result for the ends of each value, block by block."""
    wide = (pad(end, (0, -end.shape[-1] % size)) for end in (x.value - x.bound, x.value + x.bound))
    low, high = (end.unflatten(-1, (-1, size)) for end in wide)
    first, last = step(low, high)
    return first.flatten(-2), last.flatten(-2)


def _maxima(low: Tensor, high: Tensor) -> _Ends:
    """Return the smallest and the largest magnitude that the maximum of each block may have."""
    crosses = (low < 0) & (high > 0)
    least = torch.where(crosses, 0.0, torch.minimum(low.abs(), high.abs()))
    return least.amax(-1, keepdim=True), torch.maximum(low.abs(), high.abs()).amax(-1, keepdim=True)


def _block(low: Tensor, high: Tensor, kind: str, profile: Profile, dtype: torch.dtype) -> _Ends:
    """Ends of a block under one scale that is a power of two."""
    found = [_under(low, high, amax, kind, profile, dtype) for amax in _maxima(low, high)]
    return torch.minimum(found[0][0], found[1][0]), torch.maximum(found[0][1], found[1][1])


def _under(low: Tensor, high: Tensor, amax: Tensor, kind: str, profile: Profile, dtype: torch.dtype) -> _Ends:
    finite = amax.isfinite()
    byte, divisor = profile.scale(torch.where(finite, amax, 0.0), dtype)
    factor, scale = power_of_two(-divisor), power_of_two(byte - E8M0_BIAS)

    def code(end: Tensor) -> Tensor:
        quotient = torch.nan_to_num(end).abs() * factor
        magnitude = e4m3(quotient) if kind == "mxfp8" else VALUES[encode(quotient, profile.ties).long()]
        return torch.copysign(magnitude, end) * scale

    return code(low), code(high)


def _dual(low: Tensor, high: Tensor, profile: Profile, dtype: torch.dtype) -> _Ends:
    """Ends of a group under an outer scale, with ends of its own, and inner scales."""
    # What is not finite makes its own block of 32 NaN, and the outer scale does not notice.
    known = (torch.where(end.isfinite(), end, 0.0) for end in (low, high))
    least, most = (amax / 6.0 for amax in _maxima(*known))
    outer = least * (1 - SLACK), most * (1 + SLACK)
    inner = [_ratio(low, outer, False).to(dtype), _ratio(high, outer, True).to(dtype)]
    blocks = [end.double().unflatten(-1, (-1, BLOCK)) for end in inner]
    first, last = (end.flatten(-2) for end in _block(blocks[0], blocks[1], "mxfp4", profile, dtype))
    return _times(first, outer, False), _times(last, outer, True)


def _fp8(low: Tensor, high: Tensor) -> _Ends:
    """Ends of a group under one float scale, with ends of its own."""
    least, most = (amax / E4M3_MAX for amax in _maxima(low, high))
    scale = least * (1 - SLACK), most * (1 + SLACK)

    def code(end: Tensor, up: bool) -> Tensor:
        quotient = torch.nan_to_num(_ratio(end, scale, up))
        return _times(torch.copysign(e4m3(quotient.abs()), quotient), scale, up)

    return code(low, False), code(high, True)


def _ratio(end: Tensor, scale: _Ends, up: bool) -> Tensor:
    """Return the least or the largest quotient of an end and a scale."""
    by = torch.where((end > 0) == up, scale[0], scale[1])
    return torch.where(end == 0, 0.0, end / by.clamp(min=FLUSHED))


def _times(code: Tensor, scale: _Ends, up: bool) -> Tensor:
    """Return the least or the largest product of a code and a scale."""
    return code * torch.where((code > 0) == up, scale[1], scale[0])


__all__ = ["noise", "quantized"]
