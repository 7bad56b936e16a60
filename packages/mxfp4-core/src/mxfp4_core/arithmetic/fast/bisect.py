"""The scale rule of a profile as steps, found by bisection; every fast path's table is made of these.

Within one binade of the block maximum every profile's scale takes at most two values, the second from some mantissa
on; only msmodelslim's takes three, in the last binade of float16, which it overflows. The places of the steps are
bisected with `Profile.scale` itself, so no table can drift from the reference.
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
        threshold: int32 ``[R]``: the mantissa (23 bits) from which the second part holds; ``MANTISSA`` without one.
        state: int32 ``[3, 2, R]``: for each part the scale byte and the exponent that elements are divided by.
        largest: float64 ``[3, R]``: the largest maximum of each part.
        single: bool ``[R]``: whether the row has one step at most; the second and the third part are then the same.
        last: int32 ``[R]``: the mantissa from which the third part holds; ``MANTISSA`` in a row of one step.
    """

    row: torch.Tensor
    threshold: torch.Tensor
    state: torch.Tensor
    largest: torch.Tensor
    single: torch.Tensor
    last: torch.Tensor


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
    first, last = state(low << shift), state(end << shift)
    moved = (first != last).any(0)

    def step(low: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last mantissa from `low` on with the state `kept`, and the next one, where there is a step."""
        high = end
        while bool((high - low > 1).any()):
            middle = (low + high) // 2
            same = (state(middle << shift) == kept).all(0)
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        return low, high

    before, high = step(low, first)
    between = state(high << shift)
    single = ~moved | (between == last).all(0)
    until, top = step(high, between)
    if not bool((single | (state(top << shift) == last).all(0)).all()):
        raise RuntimeError(f"the rule of {profile.name!r} steps more than twice in a binade of {dtype}")
    threshold = torch.where(moved, high << shift, MANTISSA).to(torch.int32)
    upper = torch.where(single, MANTISSA, top << shift).to(torch.int32)
    tops = [torch.where(moved, before, end), torch.where(single, end, until), end]
    states = torch.stack((first, torch.where(single, last, between), last))
    return Halves(
        row, threshold, states, torch.stack([maximum(row, t << shift) for t in tops]), single, upper
    )


__all__ = ["MANTISSA", "NORMAL", "Halves", "halves", "maximum"]
