"""Profiles: a scale rule, a tie rule, and how the ends of the range are treated.

A profile is everything that decides the bytes. Two kinds exist:

* ``rule/ties`` pairs such as ``even/even`` are this project's own: bytes 1 to 254, a zero block gets byte 1, signs of
  zeros are kept;
* named profiles reproduce one peer's quantizer bit for bit, its quirks included; ``peers.py`` has their table.

Quirks are fields, so that a profile can be read; only a scale that is computed in rounding arithmetic is a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch

from mxfp4_core.arithmetic.codec import Ties
from mxfp4_core.arithmetic.format import E8M0_BIAS, E8M0_MAX, E8M0_MIN
from mxfp4_core.arithmetic.scales import ScaleRule

FLUSH: Final = 1000
"""Element exponent that turns every finite weight into a zero code."""


class Zeros(StrEnum):
    """The sign bit of a code whose magnitude is zero."""

    KEEP = "keep"
    """The sign of the weight."""
    PLUS = "plus"
    """Always plus."""
    PLUS_INPUT = "plus-input"
    """Plus where the quotient is exactly zero, the sign of the weight where it only underflows."""
    MINUS_INPUT = "minus-input"
    """Minus where the quotient is exactly zero, the sign of the weight where it only underflows."""


Exponent = Callable[[torch.Tensor, torch.dtype], torch.Tensor]
"""Block maxima (float64, positive, exact in the dtype of the weight) and that dtype, to int32 exponents."""


@dataclass(frozen=True)
class Level0:
    """How the outer scale of two levels is made, and what it leaves to the inner one.

    Attributes:
        reciprocal: whether the largest magnitude of a group is multiplied by float32(1 / 6), instead of divided by 6.
        flush: whether a scale that is subnormal becomes zero, and with it the values of its group.
        narrow: whether the quotients are rounded to the dtype of the weight; float32 otherwise.
    """

    reciprocal: bool
    flush: bool
    narrow: bool


@dataclass(frozen=True)
class Profile:
    """Everything that decides the bytes.

    Attributes:
        name: what ``quantize(profile=...)`` takes and what files record.
        rule: the scale rule, exact unless ``exponent`` replaces it.
        ties: the tie rule of the elements.
        peer: whose bytes these are, with the version that was compared; empty for this project's own.
        zeros: the sign of zero codes.
        byte_min: smallest byte of a block that is not zero.
        byte_max: largest byte.
        zero_byte: byte of a block of zeros.
        amax_min: block maxima below are raised to this before the rule applies (not for ``zero_byte``).
        carry_byte: byte where rounding the maximum up leaves FP32 (``even`` at 1.75 * 2**127 and above); None where
            the rule is exact there.
        carry_flush: whether those blocks get zero codes.
        exponent_min: smallest exponent that elements are divided by, where it differs from the one written.
        flush_below: exponents below this give byte ``byte_min`` and zero codes.
        wrap: whether exponents below -127 wrap around in the byte instead of clamping.
        low_tie_up: whether the float32 quotient just below 0.25 becomes 0.5, a slip of floor(2 * q + 0.5).
        exponent: replaces the rule where a peer computes in rounding arithmetic.
        dtypes: weight dtypes that the peer takes; empty means all three.
        down: whether elements round toward minus infinity, instead of to the nearest by ``ties``.
        level0: the outer scale, for formats that have one; everything else is then said of what it leaves.
    """

    name: str
    rule: ScaleRule
    ties: Ties
    peer: str = ""
    zeros: Zeros = Zeros.KEEP
    byte_min: int = E8M0_MIN
    byte_max: int = E8M0_MAX
    zero_byte: int = E8M0_MIN
    amax_min: float = 0.0
    carry_byte: int | None = None
    carry_flush: bool = False
    exponent_min: int | None = None
    flush_below: int | None = None
    wrap: bool = False
    low_tie_up: bool = False
    exponent: Exponent | None = None
    dtypes: tuple[torch.dtype, ...] = ()
    down: bool = False
    level0: Level0 | None = None

    def __hash__(self) -> int:
        # Tables are looked up by profile at every call; all fields would take longer than the lookup.
        return hash((self.name, self.rule.limit, self.ties))

    def scale(self, amax: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scale byte of each block and the exponent that its elements are divided by.

        Args:
            amax: float64, any shape, finite, not negative: largest magnitude of each block.
            dtype: dtype of the weight, for peers that compute in it.

        Returns:
            int32 bytes and int32 exponents. The exponent is the byte less 127, except where the peer divides by
            something other than what it writes.
        """
        zero = amax == 0
        raised = torch.where(zero, 1.0, amax).clamp(min=self.amax_min)
        if self.exponent is not None:
            exponent = self.exponent(raised, dtype).to(torch.int32)
        else:
            exponent = self.rule.exponent(raised)
        byte = exponent + E8M0_BIAS
        byte = byte & 0xFF if self.wrap else byte.clamp(self.byte_min, self.byte_max)
        divisor = byte - E8M0_BIAS
        if self.exponent_min is not None:
            divisor = exponent.clamp(min=self.exponent_min)
        if self.flush_below is not None:
            divisor = torch.where(exponent < self.flush_below, FLUSH, divisor)
        if self.carry_byte is not None:
            carries = amax >= 1.75 * 2.0**127
            byte = torch.where(carries, self.carry_byte, byte)
            divisor = torch.where(
                carries, FLUSH if self.carry_flush else self.carry_byte - E8M0_BIAS, divisor
            )
        return torch.where(zero, self.zero_byte, byte).to(torch.int32), torch.where(zero, 0, divisor).to(
            torch.int32
        )


__all__ = ["FLUSH", "Exponent", "Level0", "Profile", "Zeros"]
