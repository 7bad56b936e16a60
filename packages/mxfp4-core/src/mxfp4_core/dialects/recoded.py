"""MXFP4 weights as FP8 with one scale for 128 x 128 values, and as NVFP4: exact where their scales lie close together.

FP8: a block gets the scale 2**e of its smallest MXFP4 scale, and a value becomes ``code x 2**(own - e)``. Scales that
span at most 6 steps give at most 6 x 2**6 = 384, below the 448 that E4M3 has, and no value below its normal numbers.
NVFP4: codes stay, a scale becomes the E4M3 number 2**(own - m) twice, from 2**-9 to 2**8, so those of a weight may
span 17 steps.

Blocks of zeros have no scale of their own, and are left out of all spans. Beyond them values are rounded where that
is asked for, and refused where not. Source of the first: 6 x 2**6 < 448, as vLLM and miles users have it; of the
second: ModelOpt 0.47, cast of MXFP4 to NVFP4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mxfp4_core.arithmetic.format import BLOCK, E8M0_BIAS, E8M0_NAN
from mxfp4_core.dialects.base import Entry
from mxfp4_core.dialects.raw import Bytes
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.errors import DialectError

if TYPE_CHECKING:
    import torch

SIDE: Final = 128
"""Rows and columns that share a scale in FP8."""

FP8_SPAN: Final = 6
NVFP4_SPAN: Final = 17
_LOWEST: Final = -9
"""Exponent of the smallest power of two that E4M3 has."""


@dataclass(frozen=True)
class _OfWeight(Recipe):
    weight: str
    codes: Recipe
    scales: Recipe
    lossy: bool

    @property
    def children(self) -> tuple[Recipe, ...]:
        """Codes and scales."""
        return self.codes, self.scales

    def refuse(self, span: int, most: int, where: str, kind: str) -> None:
        """Raise the error for scales that lie too far apart."""
        raise DialectError(
            f"tensor {self.weight!r} cannot be stored in {kind} without loss",
            seen=f"scales that span {span} steps of two {where}",
            rule=f"it is exact up to {most} steps",
            fix="pass --lossy to have it rounded, with the error of each weight, or keep it in MXFP4",
        )


@dataclass(frozen=True)
class Fp8Values(_OfWeight):
    """``F8_E4M3`` ``[N, K]``."""

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Make the values of whole blocks, and cut.

        Raises:
            DialectError: a block that is not exact, unless loss is allowed.
        """
        import torch

        from mxfp4_core.arithmetic.fast.decode import dequantize

        first, last = start // SIDE * SIDE, min(-(-stop // SIDE) * SIDE, self.shape[0])
        codes, scales = self.codes.load(source, first, last), self.scales.load(source, first, last)
        low, high = _blocks(codes, scales)
        span = int((high - low).max()) if low.numel() else 0
        if span > FP8_SPAN and not self.lossy:
            self.refuse(span, FP8_SPAN, f"in a block of {SIDE} x {SIDE}", "FP8")
        shared = _spread(_exponents(low, high), codes.shape[0], self.shape[1])
        # Elements first: the largest scales take values of a weight out of the range of float32.
        plain = torch.where(scales == E8M0_NAN, E8M0_NAN, E8M0_BIAS).to(torch.uint8)
        own = (scales.int() - E8M0_BIAS).repeat_interleave(BLOCK, 1)
        exact = dequantize(codes, plain, torch.float32).double() * torch.exp2((own - shared).double())
        made = exact.to(torch.float8_e4m3fn)
        return made[start - first : stop - first].contiguous().view(torch.uint8)


@dataclass(frozen=True)
class Fp8Scales(_OfWeight):
    """``F32`` ``[ceil(N/128), ceil(K/128)]``."""

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Make the scales of these rows of blocks."""
        import torch

        last = min(stop * SIDE, self.codes.shape[0])
        codes, scales = (
            self.codes.load(source, start * SIDE, last),
            self.scales.load(source, start * SIDE, last),
        )
        exponents = _exponents(*_blocks(codes, scales)).double()
        return torch.exp2(exponents).float().view(torch.int32)


@dataclass(frozen=True)
class NvCodes(_OfWeight):
    """``U8`` ``[N, K/2]``; the codes themselves, but for blocks whose scales NVFP4 does not have.

    Args:
        step: exponent of the number of the weight.
    """

    step: int

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Pass the codes on; where a scale is too small, divide them by two as often as it takes, ties to even."""
        import torch

        from mxfp4_core.arithmetic.fast.decode import dequantize

        codes, scales = self.codes.load(source, start, stop), self.scales.load(source, start, stop)
        steps = scales.int() - E8M0_BIAS - self.step
        short = (steps < _LOWEST) & _filled(codes) & (scales != E8M0_NAN)
        if not short.any():
            return codes
        if not self.lossy:
            self.refuse(
                int(8 - steps[short].min()), NVFP4_SPAN, "in the weights that share a number", "NVFP4"
            )
        blocks = codes.reshape(*scales.shape, BLOCK // 2)
        bad = blocks[short]
        shift = (steps[short] - _LOWEST + E8M0_BIAS).clamp(0, 254).to(torch.uint8)
        values = dequantize(bad, shift[:, None], torch.float32)
        blocks[short] = _e2m1(values)
        return blocks.reshape(codes.shape)


@dataclass(frozen=True)
class NvScales(_OfWeight):
    """``F8_E4M3`` ``[N, K/16]``, each scale twice.

    Args:
        step: exponent of the number of the weight.
    """

    step: int

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Make the numbers; a block of zeros gets the nearest that there is."""
        import torch

        scales = self.scales.load(source, start, stop)
        steps = (scales.int() - E8M0_BIAS - self.step).clamp(_LOWEST, 8)
        made = torch.exp2(steps.double()).to(torch.float8_e4m3fn).view(torch.uint8)
        made = torch.where(scales == E8M0_NAN, 0x7F, made)
        return made.repeat_interleave(2, -1)


@dataclass(frozen=True)
class Number(Recipe):
    """``F32`` ``[1]``: one number that is known.

    Args:
        value: the number.
    """

    value: float

    @property
    def source_bytes(self) -> int:
        """Nothing is read."""
        return 0

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Return it."""
        import torch

        return torch.full((stop - start,), self.value, dtype=torch.float32).view(torch.int32)


def exponents_of(entry: Entry, source: Bytes) -> tuple[int, int] | None:
    """Return the smallest and the largest exponent of the scales of blocks that are not zero; None if all are.

    Codes are only read where the scales alone span more than NVFP4 has.
    """
    for exact in (False, True):
        low, high = 255, -255
        codes, scales = entry.parts["codes"], entry.parts["scales"]
        step = max(1, (4 << 20) // max(1, codes.row_bytes))
        for start in range(0, scales.shape[0], step):
            rows = start, min(start + step, scales.shape[0])
            found = scales.load(source, *rows)
            kept = found != E8M0_NAN
            if exact:
                kept &= _filled(codes.load(source, *rows))
            if kept.any():
                steps = found[kept].int() - E8M0_BIAS
                low, high = min(low, int(steps.min())), max(high, int(steps.max()))
        if low > high:
            return None
        if high - low <= NVFP4_SPAN:
            break
    return low, high


def fp8_of(entry: Entry, *, lossy: bool) -> tuple[Recipe, Recipe]:
    """Return values and scales in FP8 for a weight ``[N, K]`` in whole blocks of MXFP4."""
    n, k = entry.shape
    parts = entry.weight, entry.parts["codes"], entry.parts["scales"], lossy
    return Fp8Values("F8_E4M3", (n, k), *parts), Fp8Scales("F32", (-(-n // SIDE), -(-k // SIDE)), *parts)


def nvfp4_of(entry: Entry, largest: int, *, lossy: bool) -> tuple[Recipe, Recipe, Recipe]:
    """Return codes, scales and the number that divides in NVFP4, for a weight ``[N, K]``.

    Args:
        entry: the weight.
        largest: the largest exponent of all weights that are to share a number.
        lossy: whether values may be rounded.
    """
    n, k = entry.shape
    step = max(largest - 8, -126)  # so that the number has a reciprocal in float32
    parts = entry.weight, entry.parts["codes"], entry.parts["scales"], lossy, step
    return (
        NvCodes("U8", (n, k // 2), *parts),
        NvScales("F8_E4M3", (n, k // 16), *parts),
        Number("F32", (1,), 2.0**-step),
    )


def _filled(codes: torch.Tensor) -> torch.Tensor:
    """Return which blocks have a value that is not zero, ``[N, K/32]``."""
    return ((codes & 0x77) != 0).reshape(codes.shape[0], -1, BLOCK // 2).any(-1)


def _blocks(codes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest and largest exponent in each block of 128 x 128; 0 and 0 where all of it is zero."""
    import torch

    rows, columns = scales.shape
    kept = _filled(codes) & (scales != E8M0_NAN)
    exponents = scales.int() - E8M0_BIAS
    tall, wide = -rows % SIDE, -columns % (SIDE // BLOCK)

    def tiles(filler: int) -> torch.Tensor:
        found = torch.where(kept, exponents, filler)
        found = torch.nn.functional.pad(found, (0, wide, 0, tall), value=filler)
        return found.reshape(-1, SIDE, found.shape[1] * BLOCK // SIDE, SIDE // BLOCK)

    low, high = tiles(10**3).amin((1, 3)), tiles(-(10**3)).amax((1, 3))
    empty = low > high
    return torch.where(empty, 0, low), torch.where(empty, 0, high)


def _exponents(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return the exponents of the shared scales: the smallest, or one under which the largest value fits."""
    import torch

    return torch.maximum(low, high - FP8_SPAN)


def _spread(blocks: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return one number for each value from one for each block."""
    return blocks.repeat_interleave(SIDE, 0)[:rows].repeat_interleave(SIDE, 1)[:, :columns]


def _e2m1(values: torch.Tensor) -> torch.Tensor:
    """Return packed E2M1 codes of values up to 6, ties to the even code."""
    import torch

    bounds = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    size = values.abs()
    code = torch.bucketize(size, bounds)  # a tie goes to the lower code
    tie = (size[..., None] == bounds).any(-1)
    code = code + (tie & (code % 2 == 1))
    code = (code + 8 * values.signbit()).to(torch.uint8).reshape(*values.shape[:-1], -1, 2)
    return code[..., 0] | code[..., 1] << 4


__all__ = [
    "FP8_SPAN",
    "NVFP4_SPAN",
    "SIDE",
    "Fp8Scales",
    "Fp8Values",
    "NvCodes",
    "NvScales",
    "exponents_of",
    "fp8_of",
    "nvfp4_of",
]
