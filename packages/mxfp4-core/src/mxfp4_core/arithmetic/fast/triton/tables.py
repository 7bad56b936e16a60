"""The scale rule of one profile as tables for the Triton quantizer."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from mxfp4_core.arithmetic.fast.bisect import MANTISSA, Halves, halves
from mxfp4_core.arithmetic.format import E8M0_NAN
from mxfp4_core.arithmetic.profile import FLUSH, Profile, Zeros

ROWS: Final = 279
"""Rows of `bisect.Halves`, and row 0 for a maximum of zero, row 278 for NaN and infinity."""

CLEAR: Final = 0x100
"""This block gets zero codes with plus signs."""

_EMPTY: Final = CLEAR | 0x3F80 << 16


@lru_cache(maxsize=128)
def tables(profile: Profile, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, bool]:
    """Return the tables of a profile for one dtype of weights.

    Returns:
        int32 [2, 279], the mantissas (23 bits) from which the second and the third state of a row hold; int32 [3, 279],
        the states: scale byte in bits 7:0, ``CLEAR``, and in bits 31:16 the bfloat16 bits of the factor 2^-E; and
        whether any row has three.

    Raises:
        RuntimeError: a rule with scales that no table can say; the profiles of this project have none.
    """
    with torch.device("cpu"):  # engines load weights under a default device, often meta
        found = halves(profile, dtype)
        threshold, states = _build(profile, dtype, found)
    return threshold.to(device), states.to(device), not bool(found.single.all())


def _build(profile: Profile, dtype: torch.dtype, found: Halves) -> tuple[Tensor, Tensor]:
    threshold = torch.full((2, ROWS), MANTISSA, dtype=torch.int32)
    threshold[:, found.row] = torch.stack((found.threshold, found.last))
    states = torch.full((3, ROWS), E8M0_NAN | _EMPTY, dtype=torch.int32)
    zero = torch.zeros((), dtype=torch.float64)
    states[:, 0] = _state(profile, *profile.scale(zero, dtype), zero, dtype)
    for part, (byte, exponent) in enumerate(found.state):
        states[part, found.row] = _state(profile, byte, exponent, found.largest[part], dtype)
    if bool((states[:, found.row] == states[0, -1]).any()):
        raise RuntimeError(f"the rule of {profile.name!r} has exponents that no table of {dtype} can hold")
    return threshold, states


def _state(profile: Profile, byte: Tensor, exponent: Tensor, largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Return int32 states of blocks whose maxima reach ``largest``."""
    if dtype is torch.float16:
        # Two factors of float16 reach down to 2^-28, by which everything rounds to zero as well.
        exponent = exponent.where(exponent == FLUSH, exponent.clamp(max=28))
    # 2^-127 is subnormal, and exponents beyond mean that everything rounds to zero.
    factor = torch.where(exponent == 127, 0x0040, (127 - exponent).clamp(min=0) << 7)
    plus = (exponent == FLUSH) & (
        profile.zeros is Zeros.PLUS_INPUT
    )  # the quotients, not the weights, are zero
    state = torch.where(plus, byte | _EMPTY, byte | (factor << 16))
    covered = (exponent <= 127) | (torch.ldexp(largest, -exponent) < 0.25)
    return torch.where(covered, state, E8M0_NAN | _EMPTY).to(torch.int32)


__all__ = ["CLEAR", "ROWS", "tables"]
