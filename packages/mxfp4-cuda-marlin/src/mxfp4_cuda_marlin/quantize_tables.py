"""The scale rule of one profile as tables for the GPU quantizer; derived from the core's, never written by hand.

Within one binade of the block maximum every profile's scale takes at most two values, the second from some mantissa
on. Row 0 stands for a maximum of zero, row ``i`` for maxima from ``2^(i - 150)`` to twice that: subnormals of float32
in rows 1 to 23, normals in 24 to 277, NaN and infinity in 278.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from mxfp4_core.arithmetic import E8M0_NAN, Profile, Zeros
from mxfp4_core.arithmetic.profile import FLUSH

ROWS: Final = 279
CLEAR: Final = 0x100
"""This block gets zero codes with plus signs."""

_EMPTY: Final = CLEAR | 0x3F80 << 16
_MANTISSA: Final = 1 << 23
_FORMATS: Final = {torch.bfloat16: (24, 278, 16), torch.float16: (136, 166, 13), torch.float32: (24, 278, 0)}
"""For each dtype the first row of its normals, the row past its last, and its mantissa bits below 23."""


@lru_cache(maxsize=128)
def tables(profile: Profile, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, bool]:
    """Return the tables of a profile for one dtype of weights.

    Returns:
        int32 [279], the mantissa (23 bits) from which the second state of a row holds; int32 [2, 279], both states:
        scale byte in bits 7:0, ``CLEAR``, and in bits 31:16 the bfloat16 bits of the factor 2^-E; and whether they
        cover every finite maximum. A maximum that they do not cover gives byte 255, as NaN does.
    """
    with torch.device("cpu"):  # engines load weights under a default device, often meta
        threshold, states, complete = _build(profile, dtype)
    return threshold.to(device), states.to(device), complete


def _build(profile: Profile, dtype: torch.dtype) -> tuple[Tensor, Tensor, bool]:
    normal, stop, spare = _FORMATS[dtype]
    row = torch.arange(max(1, normal - 23 + spare), stop)
    shift = spare + (normal - row).clamp(min=0)  # subnormals have fewer mantissas
    low, high = torch.zeros_like(row), (_MANTISSA >> shift) - 1
    first, last = _state(profile, dtype, row, low << shift), _state(profile, dtype, row, high << shift)
    moved = first != last
    # Invariant where the row has a step: the state at `low` is the first one, the state at `high` is not.
    while bool((moved & (high - low > 1)).any()):
        middle = (low + high) // 2
        same = _state(profile, dtype, row, middle << shift) == first
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    step = _state(profile, dtype, row, high << shift)
    single = ~moved | (step == last)  # msmodelslim overflows float16 and steps twice
    threshold = torch.full((ROWS,), _MANTISSA, dtype=torch.int32)
    threshold[row] = torch.where(moved, high << shift, _MANTISSA).to(torch.int32)
    states = torch.full((2, ROWS), E8M0_NAN | _EMPTY, dtype=torch.int32)
    states[:, 0] = _state(profile, dtype, row[:1] * 0, row[:1] * 0)
    states[0, row], states[1, row] = first, torch.where(single, last, states[1, row])
    return threshold, states, bool((states[:, row] != states[0, -1]).all())


def _state(profile: Profile, dtype: torch.dtype, row: Tensor, mantissa: Tensor) -> Tensor:
    """Return int32 states of maxima given by row and mantissa."""
    amax = torch.where(row == 0, 0.0, torch.ldexp(1 + mantissa.double() / _MANTISSA, row - 150))
    byte, exponent = profile.scale(amax, dtype)
    # 2^-127 is subnormal, and exponents beyond mean that everything rounds to zero.
    factor = torch.where(exponent == 127, 0x0040, (127 - exponent).clamp(min=0) << 7)
    plus = (exponent == FLUSH) & (
        profile.zeros is Zeros.PLUS_INPUT
    )  # the quotients, not the weights, are zero
    state = torch.where(plus, byte | _EMPTY, byte | (factor << 16))
    covered = (exponent <= 127) | (torch.ldexp(amax, -exponent) < 0.25)
    return torch.where(covered, state, E8M0_NAN | _EMPTY).to(torch.int32)


__all__ = ["CLEAR", "ROWS", "tables"]
