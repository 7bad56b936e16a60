"""Read tensors in pieces of bounded size, each with whole rows of the block axis, or whole blocks of long rows.

A tensor ``[..., n, k]`` is a list of rows of k values. A piece is some rows of one expert (or of the only matrix), no
more than `CHUNK_VALUES` values. Where one row has more, and where the file has k before n so that rows lie apart, a
piece is some blocks of each of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.dialects.recipes import Read, Recipe

CHUNK_VALUES = 1 << 22
"""Values in one piece: 16 MiB in FP32, small enough for memory and large enough that reading costs little."""


@dataclass(frozen=True)
class Piece:
    """Some rows, or some values of each.

    Args:
        expert: index on the first axis of a stacked tensor ``[experts, ..., n, k]``, None for a plain matrix.
        start: first row, counted through all experts.
        stop: row behind the last one.
        first: first value along k. Other than 0, the piece goes on with the rows of the piece before it.
        last: value behind the last one; the end of the rows if None.
    """

    expert: int | None
    start: int
    stop: int
    first: int = 0
    last: int | None = None


def logical_shape(shape: tuple[int, ...], *, transposed: bool) -> tuple[int, ...]:
    """Return ``[..., n, k]`` for the shape of a tensor in the file."""
    return (*shape[:-2], shape[-1], shape[-2]) if transposed else shape


def pieces(shape: tuple[int, ...], *, transposed: bool = False, block: int = BLOCK) -> Iterator[Piece]:
    """Cut a tensor of the logical shape ``[..., n, k]`` into pieces, in the order of the rows.

    Args:
        shape: logical shape.
        transposed: whether the file has the axes ``[..., k, n]``.
        block: values along k that stay together.
    """
    if 0 in shape:
        return
    *lead, k = shape
    experts = lead[0] if len(lead) > 1 else 1
    rows = math.prod(lead) // experts
    step = shape[-2] if transposed else max(1, CHUNK_VALUES // k)
    size = k if step * k <= CHUNK_VALUES else max(1, CHUNK_VALUES // (step * block)) * block
    for expert in range(experts):
        first = expert * rows
        for start in range(first, first + rows, step):
            place = expert if len(lead) > 1 else None, start, min(start + step, first + rows)
            if size >= k:
                yield Piece(*place)
                continue
            for at in range(0, k, size):
                yield Piece(*place, at, min(at + size, k))


def matrix(recipe: Recipe) -> Recipe:
    """Return ``[..., k]`` as rows, ``[rows, k]``."""
    return recipe.reshape(math.prod(recipe.shape[:-1]), recipe.shape[-1])


def flat(recipe: Recipe) -> Recipe:
    """Return all elements in one axis, of which any range can be loaded."""
    return recipe.reshape(math.prod(recipe.shape))


def read_piece(checkpoint: Checkpoint, name: str, piece: Piece, *, transposed: bool = False) -> torch.Tensor:
    """Read a piece as a matrix ``[rows, values]``.

    Args:
        checkpoint: where the tensor is.
        name: its name there.
        piece: which rows, and which values of them.
        transposed: whether the file has the axes ``[..., k, n]``.

    Raises:
        CheckpointError: the file can no longer be read.
    """
    info = checkpoint.tensors[name]
    k = info.shape[-2 if transposed else -1]
    last = k if piece.last is None else piece.last
    if transposed:
        first = piece.start // info.shape[-1] * k
        return checkpoint.matrix_rows(name, first + piece.first, first + last).T.contiguous()
    if last - piece.first == k:
        return checkpoint.matrix_rows(name, piece.start, piece.stop)
    values = Read(info.dtype, info.shape, name)
    return flat(values).load(checkpoint, piece.start * k + piece.first, piece.start * k + last).reshape(1, -1)


__all__ = ["CHUNK_VALUES", "Piece", "flat", "logical_shape", "matrix", "pieces", "read_piece"]
