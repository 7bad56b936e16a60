"""The scale rule of a profile as steps, found by bisection; every fast path's table is made of these.

Within one binade of the block maximum every profile's scale takes at most two values, the second from some mantissa
on. The place of that step is bisected with `Profile.scale` itself, so no table can drift from the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch

from mxfp4_core.arithmetic.profile import Profile

MANTISSA: Final = 1 << 23
"""A mantissa that no maximum has: the row has no second state."""

NORMAL: Final = 24
"""First row of normal float32 numbers: row ``i`` there has the exponent field ``i - 23``."""

_ROWS: Final = {torch.bfloat16: (24, 278, 16), torch.float16: (136, 166, 13), torch.float32: (24, 278, 0)}
"""For each dtype the first row of its normals, the row past its last, and its mantissa bits below 23."""


@dataclass(frozen=True)
class Halves:
    """The steps of one profile for one dtype of weights, a column for each row.

    Row ``i`` stands for maxima from ``2^(i - 150)`` to twice that: subnormals of float32 in rows 1 to 23, normals in 24
    to 277. Rows that the dtype does not reach are left out.

    Attributes:
        row: int64 ``[R]``.
        threshold: int32 ``[R]``: the mantissa (23 bits) from which the second half holds; ``MANTISSA`` without one.
        state: int32 ``[2, 2, R]``: for each half the scale byte and the exponent that elements are divided by.
        largest: float64 ``[2, R]``: the largest maximum of each half.
        single: bool ``[R]``: whether the row has one step at most; where not, the second half is not to be believed.
    """

    row: torch.Tensor
    threshold: torch.Tensor
    state: torch.Tensor
    largest: torch.Tensor
    single: torch.Tensor


@lru_cache(maxsize=128)
def halves(profile: Profile, dtype: torch.dtype) -> Halves:
    """Return the steps of a profile for bfloat16, float16 or float32 weights, on the CPU."""
    with torch.device("cpu"):  # engines load weights under a default device, often meta
        return _bisect(profile, dtype)


def maximum(row: torch.Tensor, mantissa: torch.Tensor) -> torch.Tensor:
    """Return the float64 values of maxima by row and mantissa."""
    return torch.ldexp(1 + mantissa.double() / MANTISSA, row - 150)


def _bisect(profile: Profile, dtype: torch.dtype) -> Halves:
    normal, stop, spare = _ROWS[dtype]
    row = torch.arange(max(1, normal - 23 + spare), stop)
    shift = spare + (normal - row).clamp(min=0)  # subnormals have fewer mantissas

    def state(mantissa: torch.Tensor) -> torch.Tensor:
        return torch.stack(profile.scale(maximum(row, mantissa), dtype))

    low, end = torch.zeros_like(row), (MANTISSA >> shift) - 1
    high = end
    first, last = state(low << shift), state(high << shift)
    moved = (first != last).any(0)
    # Invariant where the row has a step: the state at `low` is the first one, the state at `high` is not.
    while bool((moved & (high - low > 1)).any()):
        middle = (low + high) // 2
        same = (state(middle << shift) == first).all(0)
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    single = ~moved | (state(high << shift) == last).all(0)  # msmodelslim overflows float16 and steps twice
    threshold = torch.where(moved, high << shift, MANTISSA).to(torch.int32)
    tops = [maximum(row, torch.where(moved, low, end) << shift), maximum(row, end << shift)]
    return Halves(row, threshold, torch.stack((first, last)), torch.stack(tops), single)


__all__ = ["MANTISSA", "NORMAL", "Halves", "halves", "maximum"]
