"""Weights that are quantised, but are no plain MXFP4: FP8 in blocks, NVFP4, MXFP4 that was rotated.

A checkpoint with MXFP4 experts may hold its dense layers in FP8 (DeepSeek-V4: 128 x 128), or all of its weights may
be of another kind. They are kept as they are, or their values are made: widened to BF16 where that is exact, which it
is for FP8 with scales that are powers of two (E4M3 has four significant bits, BF16 eight), or rounded to a dtype
where that is asked for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mxfp4_core.arithmetic.format import E8M0_BIAS, E8M0_NAN
from mxfp4_core.checkpoint.header import DTYPE_BITS
from mxfp4_core.checkpoint.reader import TORCH_DTYPES
from mxfp4_core.dialects.raw import CARRIERS, PIECE, Bytes, misfit, nothing
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.errors import DialectError

if TYPE_CHECKING:
    import torch

_SCALES = ("F8_E8M0", "U8", "F32", "BF16", "F16")
_VALUES = 1 << 19
"""Values that are made in one step, in float64."""


@dataclass(frozen=True)
class Narrow(ABC):
    """One weight in another kind of quantisation.

    Args:
        weight: canonical name.
    """

    weight: str

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Logical shape ``[..., N, K]``."""

    @property
    @abstractmethod
    def stored(self) -> tuple[Recipe, ...]:
        """What it is made from."""

    @property
    @abstractmethod
    def told(self) -> str:
        """What it is, in a few words."""

    @abstractmethod
    def numbers(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Make the values of the indices ``start`` to ``stop`` of the first axis, in float64."""

    def chunks(self, source: Bytes, start: int, stop: int, most: int) -> Iterator[torch.Tensor]:
        """Make what `numbers` makes piece by piece, in order; each has about ``most`` values, or one row."""
        step = max(1, most // max(1, math.prod(self.shape[1:])))
        for first in range(start, stop, step):
            yield self.numbers(source, first, min(first + step, stop))

    @property
    def names(self) -> tuple[str, ...]:
        """The stored tensors."""
        return tuple(dict.fromkeys(name for recipe in self.stored for name in recipe.names))

    @property
    def widened(self) -> Recipe:
        """The recipe for the same values in BF16; it raises where BF16 does not have one of them."""
        return Widen("BF16", self.shape, self, True)

    def rounded(self, dtype: str = "BF16") -> Recipe:
        """Return the recipe for the values rounded to a dtype, ties to even."""
        return Widen(dtype, self.shape, self, False)


@dataclass(frozen=True)
class Beside(Narrow):
    """One weight in FP8.

    Args:
        weight: canonical name.
        values: ``F8_E4M3`` ``[..., N, K]``.
        scales: ``F8_E8M0``, ``U8`` with the same bits, or floats ``[..., N / rows, K / columns]``, rounded up; a value
            counts times its scale.
        block: rows and columns that share a scale.
        inputs: how its inputs are quantised, in the words of the dialect that it comes from; may be empty.
    """

    values: Recipe
    scales: Recipe
    block: tuple[int, int]
    inputs: str = ""

    def __post_init__(self) -> None:
        """Check that values and scales belong together."""
        *lead, n, k = self.values.shape if len(self.values.shape) > 1 else (0, 0)
        grid = (*lead, -(-n // self.block[0]), -(-k // self.block[1]))
        fits = self.values.dtype == "F8_E4M3" and self.scales.dtype in _SCALES
        if not fits or self.scales.shape != grid or len(self.values.shape) < 2:
            seen = f"{self.weight!r}: {self.values.dtype} {list(self.values.shape)} with "
            seen += f"{self.scales.dtype} {list(self.scales.shape)}"
            misfit(seen, f"F8_E4M3 values have F8_E8M0 or float scales for blocks of {list(self.block)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values."""
        return self.values.shape

    @property
    def stored(self) -> tuple[Recipe, ...]:
        """Values and scales."""
        return self.values, self.scales

    @property
    def told(self) -> str:
        """FP8, and its blocks."""
        return f"FP8 with scales for blocks of {list(self.block)}"

    def numbers(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Multiply in FP64, where every such product is exact."""
        import torch

        high, wide = self.block
        first = 0
        if len(self.shape) > 2:
            scales = self.scales.load(source, start, stop)
        else:
            first = start // high
            scales = self.scales.load(source, first, -(-stop // high))
        row = torch.arange(*((0, self.shape[-2]) if len(self.shape) > 2 else (start, stop))) // high - first
        column = torch.arange(self.shape[-1]) // wide
        values = self.values.load(source, start, stop).double()
        return values * factors(scales)[..., row, :][..., column]


@dataclass(frozen=True)
class Widen(Recipe):
    """The values of a weight in a dtype; made by `Narrow.widened` and `Narrow.rounded`.

    Args:
        of: the weight.
        exact: whether a value that the dtype does not have is an error.
    """

    of: Narrow
    exact: bool

    @property
    def children(self) -> tuple[Recipe, ...]:
        """What the weight is made from."""
        return self.of.stored

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Make the values, and round them.

        Raises:
            DialectError: a value that the dtype does not have, where that counts; or one that is larger than all of it.
        """
        made = nothing(self.dtype, (stop - start, *self.shape[1:]))
        flat, at = made.view(-1), 0
        for values in self.of.chunks(source, start, stop, _VALUES):
            end = at + values.numel()
            flat[at:end] = self._round(values).reshape(-1)
            at = end
        return made

    def pieces(self, source: Bytes, most: int = PIECE) -> Iterator[memoryview]:
        """Yield all bytes in order, in pieces that need not end with a row."""
        count = self.shape[0] if self.nbytes else 0
        for values in self.of.chunks(source, 0, count, min(_VALUES, max(1, most))):
            yield self._round(values).contiguous().numpy().reshape(-1).view("uint8").data

    def _round(self, values: torch.Tensor) -> torch.Tensor:
        import torch

        rounded = values.to(getattr(torch, TORCH_DTYPES[self.dtype]))
        back = rounded.double()
        lost = back.isinf()  # no weight is infinite
        if self.exact:
            lost |= (back != values) & ~values.isnan()
        if lost.any():
            raise DialectError(
                f"tensor {self.of.weight!r} cannot be widened to {self.dtype}",
                seen=f"{int(lost.sum())} value(s) that {self.dtype} does not have, for example "
                f"{float(values[lost][0])!r}",
                rule="widening is exact: scales are powers of two, and products lie in the range of the dtype",
                fix="keep these weights as they are, use `mxfp4 dequantize`, which rounds, or start from the "
                "checkpoint in high precision",
            )
        carrier: torch.dtype = getattr(torch, CARRIERS[DTYPE_BITS[self.dtype]])
        return rounded.view(carrier)


def factors(scales: torch.Tensor) -> torch.Tensor:
    """Return the numbers that scales stand for, in float64: floats as they are, bytes as powers of two."""
    import torch

    if scales.dtype not in (torch.uint8, torch.float8_e8m0fnu):
        return scales.double()
    exponents = scales.view(torch.uint8).double()
    found = torch.exp2(exponents - E8M0_BIAS)
    return torch.where(exponents == E8M0_NAN, torch.nan, found)


__all__ = ["Beside", "Narrow", "Widen", "factors"]
