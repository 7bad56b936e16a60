"""A profile in the form that fast code wants: one step per binade, and seven integer thresholds.

Within one binade of the block maximum (one float32 exponent) every profile's scale takes at most two values, so its
whole scale rule is a table of 256 rows: the value below a mantissa threshold and the value from it on. The table is
found by bisecting :meth:`Profile.scale`, never written by hand, so fast paths cannot drift from the reference.

Elements compare as integers too: for a finite weight, the float32 bits of ``|w| / 2**E`` are the bits of ``|w|`` less
``E << 23``, as long as neither is subnormal. Blocks where that fails (subnormal maxima, exponents below
``EXPONENT_MIN``, not finite) are marked ``SPECIAL`` and left to the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch

from mxfp4_core.arithmetic.format import E2M1_THRESHOLDS, E8M0_NAN, SIGN_BIT
from mxfp4_core.arithmetic.profile import FLUSH, Profile, Zeros

EXPONENT_MIN: Final = -123
"""Lowest exponent with which a subnormal weight still compares below every threshold."""

E4M3_EXPONENT_MIN: Final = -116
"""The same for E4M3 elements, whose smallest threshold is 2**-10."""

SPECIAL: Final = -(1 << 15)
"""In place of an exponent: this block goes to the reference."""

NEVER: Final = -(1 << 31)
"""Bits that no difference of float32 bits has."""

_MANTISSA: Final = 1 << 23
_GRID: Final = {torch.bfloat16: 1 << 16, torch.float16: 1 << 13, torch.float32: 1}
_LAST_ROW: Final = {torch.bfloat16: 254, torch.float16: 142, torch.float32: 254}  # FP16 ends below 2**16


@dataclass(frozen=True)
class Steps:
    """The scale rule of one profile for one weight dtype, and its element thresholds.

    Row ``r`` holds block maxima whose float32 exponent field is ``r``.

    Attributes:
        mantissa: int32 ``[256]``: maxima with this mantissa field or a larger one take the second value.
        byte: uint8 ``[2, 256]``: scale byte before and after the step.
        exponent: int32 ``[2, 256]``: exponent that elements are divided by, or ``SPECIAL``.
        thresholds: int32 ``[7]``: float32 bits that a quotient must reach for the next magnitude index.
        lifted: float32 bits of the one quotient below 0.25 that still becomes 0.5, or ``NEVER``.
    """

    mantissa: torch.Tensor
    byte: torch.Tensor
    exponent: torch.Tensor
    thresholds: torch.Tensor
    lifted: int


@dataclass(frozen=True)
class Arguments:
    """The same as the compiled kernels take it.

    Attributes:
        tables: ``mantissa``, ``byte`` and ``exponent``.
        limits: int32 ``[8]``: the thresholds, then ``lifted``.
        signs: int32 ``[4]``: see `sign_masks`.
    """

    tables: tuple[np.ndarray, np.ndarray, np.ndarray]
    limits: np.ndarray
    signs: np.ndarray


@lru_cache(maxsize=128)
def arguments(profile: Profile, dtype: torch.dtype, exponent_min: int = EXPONENT_MIN) -> Arguments:
    """Return the tables of `steps` as arrays."""
    table = steps(profile, dtype, exponent_min)
    limits = np.array([*table.thresholds.tolist(), table.lifted], dtype=np.int32)
    tables = table.mantissa.numpy(), table.byte.numpy(), table.exponent.numpy()
    return Arguments(tables, limits, sign_masks(profile))


def sign_masks(profile: Profile) -> np.ndarray:
    """Return masks that drop the sign of zero codes, the sign that zero weights gain, and the byte of zero blocks."""
    plus = -1 if profile.zeros is Zeros.PLUS else 0
    exact = -1 if profile.zeros is Zeros.PLUS_INPUT else 0
    minus = SIGN_BIT if profile.zeros is Zeros.MINUS_INPUT else 0
    return np.array([plus, exact, minus, profile.zero_byte], dtype=np.int32)


def _state(profile: Profile, dtype: torch.dtype, row: torch.Tensor, mantissa: torch.Tensor) -> torch.Tensor:
    amax = ((row << 23) | mantissa).to(torch.int32).view(torch.float32).to(torch.float64)
    byte, exponent = profile.scale(amax, dtype)
    return torch.stack((byte, exponent))


@lru_cache(maxsize=128)
def steps(profile: Profile, dtype: torch.dtype, exponent_min: int = EXPONENT_MIN) -> Steps:
    """Return the tables of a profile for bfloat16, float16 or float32 weights, on the CPU.

    Args:
        profile: what decides the bytes.
        dtype: of the weight.
        exponent_min: lowest exponent with which elements still compare as integers.
    """
    with torch.device("cpu"):  # engines load weights under a default device, often meta
        return _bisect(profile, dtype, exponent_min)


def _bisect(profile: Profile, dtype: torch.dtype, exponent_min: int) -> Steps:
    row = torch.arange(1, _LAST_ROW[dtype] + 1)
    grid = _GRID[dtype]
    low, high = torch.zeros_like(row), torch.full_like(row, _MANTISSA // grid - 1)
    first, last = (_state(profile, dtype, row, end * grid) for end in (low, high))
    moved = (first != last).any(0)
    # Invariant where the row has a step: the state at `low` is the first one, the state at `high` is not.
    while bool((moved & (high - low > 1)).any()):
        middle = (low + high) // 2
        same = (_state(profile, dtype, row, middle * grid) == first).all(0)
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)

    # A row with more than one step (a peer that overflows its own dtype) is not worth a table.
    single = ~moved | (_state(profile, dtype, row, high * grid) == last).all(0)

    mantissa = torch.full((256,), _MANTISSA, dtype=torch.int32)
    mantissa[row] = torch.where(moved, high * grid, _MANTISSA).to(torch.int32)
    byte = torch.full((2, 256), E8M0_NAN, dtype=torch.uint8)
    exponent = torch.full((2, 256), SPECIAL, dtype=torch.int32)
    for side, state in enumerate((first, last)):
        usable = single & (state[1] >= exponent_min) & (state[1] < FLUSH)
        byte[side, row] = torch.where(usable, state[0], E8M0_NAN).to(torch.uint8)
        exponent[side, row] = torch.where(usable, state[1], SPECIAL).to(torch.int32)
    bits = torch.tensor(E2M1_THRESHOLDS, dtype=torch.float32).view(torch.int32)
    thresholds = bits + (~torch.tensor(profile.ties.up)).to(torch.int32)
    lifted = int(bits[0]) - 1 if profile.low_tie_up else NEVER
    return Steps(mantissa, byte, exponent, thresholds, lifted)


__all__ = [
    "E4M3_EXPONENT_MIN",
    "EXPONENT_MIN",
    "NEVER",
    "SPECIAL",
    "Arguments",
    "Steps",
    "arguments",
    "sign_masks",
    "steps",
]
