"""Recipes of several recipes: experts stacked, gate and up one below the other or row by row.

An engine composes its own form of a model with these on top of what a dialect reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mxfp4_core.checkpoint.header import DTYPE_BITS
from mxfp4_core.dialects.raw import CARRIERS, Bytes, joined, misfit
from mxfp4_core.dialects.recipes import Recipe

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Joined(Recipe):
    of: tuple[Recipe, ...]
    axis: int

    @property
    def children(self) -> tuple[Recipe, ...]:
        """All of them."""
        return self.of


@dataclass(frozen=True)
class Stack(_Joined):
    """Equal recipes along a new axis; made by `stack`."""

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Make whole recipes where the new axis is the first one; else the range of each."""
        import torch

        if self.axis == 0:
            made = [each.rows(source, 0, each.shape[0] if each.shape else 1) for each in self.of[start:stop]]
            if not made:
                return self.of[0].rows(source, 0, 0).reshape(0, *self.shape[1:])
            return torch.stack([each.reshape(self.shape[1:]) for each in made])
        return torch.stack([each.rows(source, start, stop) for each in self.of], self.axis)


@dataclass(frozen=True)
class Concat(_Joined):
    """Recipes one behind the other along an axis; made by `concat`."""

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Make the ranges that are asked for, of those that have a part in them."""
        if self.axis:
            return joined([each.rows(source, start, stop) for each in self.of], self.axis)
        made, at = [], 0
        for each in self.of:
            first, last = max(start - at, 0), min(stop - at, each.shape[0])
            if first < last:
                made.append(each.rows(source, first, last))
            at += each.shape[0]
        return joined(made, 0) if made else self.of[0].rows(source, 0, 0)


def stack(recipes: Sequence[Recipe], axis: int = 0) -> Recipe:
    """Stack recipes of one dtype and shape along a new axis, for example experts into ``[E, ...]``.

    Raises:
        DialectError: none, or of several dtypes or shapes, or no such axis.
    """
    first = _alike(recipes)
    if any(each.shape != first.shape for each in recipes):
        misfit(f"shapes {sorted({each.shape for each in recipes})}", "what is stacked has one shape")
    if not 0 <= axis <= len(first.shape):
        misfit(f"axis {axis} of {list(first.shape)}", "the axis exists")
    shape = (*first.shape[:axis], len(recipes), *first.shape[axis:])
    return Stack(first.dtype, shape, tuple(recipes), axis)


def concat(recipes: Sequence[Recipe], axis: int = 0) -> Recipe:
    """Put recipes one behind the other, for example the rows of up below those of gate.

    Raises:
        DialectError: none, or of several dtypes, or shapes that differ in another axis.
    """
    first = _alike(recipes)
    if not 0 <= axis < len(first.shape):
        misfit(f"axis {axis} of {list(first.shape)}", "the axis exists")
    if len({(*each.shape[:axis], *each.shape[axis + 1 :]) for each in recipes}) > 1:
        misfit(f"shapes {sorted({each.shape for each in recipes})}", f"they differ in axis {axis} alone")
    if len(recipes) == 1:
        return first
    size = sum(each.shape[axis] for each in recipes)
    shape = (*first.shape[:axis], size, *first.shape[axis + 1 :])
    return Concat(first.dtype, shape, tuple(recipes), axis)


def interleave(recipes: Sequence[Recipe], axis: int = 0) -> Recipe:
    """Take the indices of an axis in turn: row 0 of each, then row 1 of each. ``take(i, step=n)`` undoes it.

    Raises:
        DialectError: as `stack`, or no such axis.
    """
    first = _alike(recipes)
    if not 0 <= axis < len(first.shape):
        misfit(f"axis {axis} of {list(first.shape)}", "the axis exists")
    shape = (*first.shape[:axis], first.shape[axis] * len(recipes), *first.shape[axis + 1 :])
    return stack(recipes, axis + 1).reshape(*shape)


@dataclass(frozen=True)
class Zeros(Recipe):
    """Bytes of zero, where a layout has places that no weight fills; it reads nothing."""

    @property
    def source_bytes(self) -> int:
        """Nothing is read."""
        return 0

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Make zeros."""
        import torch

        return torch.zeros(
            (stop - start, *self.shape[1:]), dtype=getattr(torch, CARRIERS[DTYPE_BITS[self.dtype]])
        )


def extended(recipe: Recipe, *shape: int) -> Recipe:
    """Fill up the first two axes of a matrix with zeros behind its rows and columns.

    Raises:
        DialectError: no matrix, or a smaller shape.
    """
    if len(recipe.shape) != 2 or any(new < old for new, old in zip(shape, recipe.shape, strict=True)):
        misfit(f"{list(recipe.shape)} filled up to {list(shape)}", "a matrix is filled up to a larger one")
    n, k = recipe.shape
    wide = concat([recipe, Zeros(recipe.dtype, (n, shape[1] - k))], 1) if shape[1] > k else recipe
    return concat([wide, Zeros(recipe.dtype, (shape[0] - n, shape[1]))]) if shape[0] > n else wide


def blocked(scales: Recipe) -> Recipe:
    """Lay out scales ``[N, K/32]`` as NVIDIA's matrix units take them, ``[ceil(N/128) 32, ceil(K/128) 16]``.

    In the order of the bytes: blocks of 128 rows, of 4 columns, row % 32, row / 32 % 4, column % 4. Places that no
    scale fills are zero. Source: cuBLAS, "1D block scaling factors layout"; torchao 0.18, ``to_blocked``.
    """
    high, wide = -(-scales.shape[0] // 128), -(-scales.shape[1] // 4)
    tiles = extended(scales, high * 128, wide * 4).reshape(high, 4, 32, wide, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(high * 32, wide * 16)


def unblocked(scales: Recipe, n: int, columns: int) -> Recipe:
    """Undo `blocked`, for so many rows and columns."""
    high, wide = -(-n // 128), -(-columns // 4)
    tiles = scales.reshape(high, wide, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(high * 128, wide * 4).take(0, n).take(0, columns, axis=1)


def _alike(recipes: Sequence[Recipe]) -> Recipe:
    if len({each.dtype for each in recipes}) != 1:
        misfit(f"dtypes {sorted({each.dtype for each in recipes})}", "what is joined has one dtype")
    return recipes[0]


__all__ = ["Concat", "Stack", "Zeros", "blocked", "concat", "extended", "interleave", "stack", "unblocked"]
