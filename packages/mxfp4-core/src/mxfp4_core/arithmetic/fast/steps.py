"""A profile in the form that fast code wants: one step per binade, and seven integer thresholds.

The whole scale rule is a table of 256 rows, one for each float32 exponent of the block maximum: the value below a
mantissa threshold and the value from it on, as :mod:`mxfp4_core.arithmetic.fast.bisect` finds them.

Elements compare as integers too: for a finite weight, the float32 bits of ``|w| / 2**E`` are the bits of ``|w|`` less
``E << 23``, as long as neither is subnormal. Blocks where that fails (subnormal maxima, exponents below
``EXPONENT_MIN``, rules with more steps, not finite) are marked ``SPECIAL``. `Places` is the table for them, with a
row for every maximum, for code that compares subnormals, too. Other code leaves them to the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch

from mxfp4_core.arithmetic.fast.bisect import MANTISSA, NORMAL, Halves, halves
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
class Places:
    """The whole scale rule of one profile for one weight dtype: a row for every maximum, numbered as in `Halves`.

    Attributes:
        second: int32 ``[R]``: the mantissa from which the second state holds.
        third: int32 ``[R]``: the mantissa from which the third one does.
        byte: uint8 ``[3, R]``: scale byte.
        exponent: int32 ``[3, R]``: exponent that elements are divided by, ``FLUSH`` where they become zeros, and
            ``SPECIAL`` in rows that no finite maximum has.
    """

    second: torch.Tensor
    third: torch.Tensor
    byte: torch.Tensor
    exponent: torch.Tensor


@dataclass(frozen=True)
class Arguments:
    """The same as the compiled kernels take it.

    Attributes:
        tables: ``mantissa``, ``byte`` and ``exponent``.
        places: the fields of `Places`, in order.
        limits: int32 ``[8]``: the thresholds, then ``lifted``.
        signs: int32 ``[4]``: see `sign_masks`.
    """

    tables: tuple[np.ndarray, np.ndarray, np.ndarray]
    places: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    limits: np.ndarray
    signs: np.ndarray


@lru_cache(maxsize=128)
def arguments(profile: Profile, dtype: torch.dtype, exponent_min: int = EXPONENT_MIN) -> Arguments:
    """Return the tables of `steps` and `places` as arrays."""
    table, every = steps(profile, dtype, exponent_min), places(profile, dtype)
    limits = np.array([*table.thresholds.tolist(), table.lifted], dtype=np.int32)
    tables = table.mantissa.numpy(), table.byte.numpy(), table.exponent.numpy()
    rows = every.second.numpy(), every.third.numpy(), every.byte.numpy(), every.exponent.numpy()
    return Arguments(tables, rows, limits, sign_masks(profile))


def sign_masks(profile: Profile) -> np.ndarray:
    """Return masks that drop the sign of zero codes, the sign that zero weights gain, and the byte of zero blocks."""
    plus = -1 if profile.zeros is Zeros.PLUS else 0
    exact = -1 if profile.zeros is Zeros.PLUS_INPUT else 0
    minus = SIGN_BIT if profile.zeros is Zeros.MINUS_INPUT else 0
    return np.array([plus, exact, minus, profile.zero_byte], dtype=np.int32)


@lru_cache(maxsize=128)
def steps(profile: Profile, dtype: torch.dtype, exponent_min: int = EXPONENT_MIN) -> Steps:
    """Return the tables of a profile for bfloat16, float16 or float32 weights, on the CPU.

    Args:
        profile: what decides the bytes.
        dtype: of the weight.
        exponent_min: lowest exponent with which elements still compare as integers.
    """
    with torch.device("cpu"):  # engines load weights under a default device, often meta
        return _build(profile, halves(profile, dtype), exponent_min)


def _build(profile: Profile, found: Halves, exponent_min: int) -> Steps:
    normal = found.row >= NORMAL
    row, single = found.row[normal] - NORMAL + 1, found.single[normal]
    mantissa = torch.full((256,), MANTISSA, dtype=torch.int32)
    mantissa[row] = found.threshold[normal]
    byte = torch.full((2, 256), E8M0_NAN, dtype=torch.uint8)
    exponent = torch.full((2, 256), SPECIAL, dtype=torch.int32)
    for side, state in enumerate(found.state[:2, :, normal]):
        # A row with more than one step (a peer that overflows its own dtype) is left to `Places`.
        usable = single & (state[1] >= exponent_min) & (state[1] < FLUSH)
        byte[side, row] = torch.where(usable, state[0], E8M0_NAN).to(torch.uint8)
        exponent[side, row] = torch.where(usable, state[1], SPECIAL).to(torch.int32)
    bits = torch.tensor(E2M1_THRESHOLDS, dtype=torch.float32).view(torch.int32)
    thresholds = bits + (~torch.tensor(profile.ties.up)).to(torch.int32)
    lifted = int(bits[0]) - 1 if profile.low_tie_up else NEVER
    return Steps(mantissa, byte, exponent, thresholds, lifted)


def places(profile: Profile, dtype: torch.dtype) -> Places:
    """Return the table of every maximum of a profile for bfloat16, float16 or float32 weights, on the CPU."""
    with torch.device("cpu"):
        found = halves(profile, dtype)
        rows = 256 + NORMAL - 1
        second, third = (torch.full((rows,), MANTISSA, dtype=torch.int32) for _ in range(2))
        second[found.row], third[found.row] = found.threshold, found.last
        byte = torch.full((3, rows), E8M0_NAN, dtype=torch.uint8)
        exponent = torch.full((3, rows), SPECIAL, dtype=torch.int32)
        for number, (scale, divisor) in enumerate(found.state):
            byte[number, found.row] = scale.to(torch.uint8)
            exponent[number, found.row] = divisor.to(torch.int32)
        return Places(second, third, byte, exponent)


__all__ = [
    "E4M3_EXPONENT_MIN",
    "EXPONENT_MIN",
    "NEVER",
    "SPECIAL",
    "Arguments",
    "Places",
    "Steps",
    "arguments",
    "places",
    "sign_masks",
    "steps",
]
