"""Weights that are quantised, but are no MXFP4: FP8 with one scale for each block of rows and columns.

A checkpoint with MXFP4 experts may hold its dense layers so (DeepSeek-V4: 128 x 128). They are kept as they are, or
widened to BF16: an E4M3 value has four significant bits, BF16 has eight, and a scale that is a power of two moves the
exponent only, so nothing is rounded. What would be rounded is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mxfp4_core.arithmetic.format import E8M0_BIAS, E8M0_NAN
from mxfp4_core.dialects.raw import Bytes, misfit
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.errors import DialectError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Beside:
    """One weight in FP8.

    Args:
        weight: canonical name.
        values: ``F8_E4M3`` ``[..., N, K]``.
        scales: ``F8_E8M0`` or ``F32`` ``[..., N / rows, K / columns]``, rounded up; a value counts times its scale.
        block: rows and columns that share a scale.
    """

    weight: str
    values: Recipe
    scales: Recipe
    block: tuple[int, int]

    def __post_init__(self) -> None:
        """Check that values and scales belong together."""
        *lead, n, k = self.values.shape if len(self.values.shape) > 1 else (0, 0)
        grid = (*lead, -(-n // self.block[0]), -(-k // self.block[1]))
        fits = self.values.dtype == "F8_E4M3" and self.scales.dtype in ("F8_E8M0", "F32")
        if not fits or self.scales.shape != grid or len(self.values.shape) < 2:
            seen = f"{self.weight!r}: {self.values.dtype} {list(self.values.shape)} with "
            seen += f"{self.scales.dtype} {list(self.scales.shape)}"
            misfit(seen, f"F8_E4M3 values have F8_E8M0 or F32 scales for blocks of {list(self.block)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The stored tensors."""
        return (*self.values.names, *self.scales.names)

    @property
    def widened(self) -> Recipe:
        """The recipe for the same values in BF16."""
        return Widen("BF16", self.values.shape, self.weight, self.values, self.scales, self.block)


@dataclass(frozen=True)
class Widen(Recipe):
    """Values times their scales in BF16, exactly; made by `Beside.widened`.

    Args:
        weight: name for messages.
        values: the FP8 values.
        scales: their scales.
        block: rows and columns that share a scale.
    """

    weight: str
    values: Recipe
    scales: Recipe
    block: tuple[int, int]

    @property
    def children(self) -> tuple[Recipe, ...]:
        """Values and scales."""
        return self.values, self.scales

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Multiply in FP64, where every such product is exact, and round to BF16, which must change nothing.

        Raises:
            DialectError: a product that BF16 does not have.
        """
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
        exact = values * _factors(scales)[..., row, :][..., column]
        rounded = exact.to(torch.bfloat16)
        lost = (rounded.double() != exact) & ~exact.isnan()
        if lost.any():
            raise DialectError(
                f"tensor {self.weight!r} cannot be widened to BF16",
                seen=f"{int(lost.sum())} value(s) that BF16 does not have, for example {float(exact[lost][0])!r}",
                rule="widening is exact: scales are powers of two, and products lie in the range of BF16",
                fix="keep these weights in FP8, or start from the checkpoint in high precision",
            )
        return rounded.view(torch.int16)


def _factors(scales: torch.Tensor) -> torch.Tensor:
    import torch

    if scales.dtype == torch.float32:
        return scales.double()
    exponents = scales.view(torch.uint8).double()
    factors = torch.exp2(exponents - E8M0_BIAS)
    return torch.where(exponents == E8M0_NAN, torch.nan, factors)


__all__ = ["Beside", "Widen"]
