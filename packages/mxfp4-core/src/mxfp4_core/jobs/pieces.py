"""Read tensors in pieces of bounded size, each with whole rows of the block axis.

A tensor ``[..., n, k]`` is a list of rows of k values. A piece is some rows of one expert (or of the only matrix), no
more than `CHUNK_VALUES` values. Only where the file has k before n do rows lie apart, and a piece is a whole matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mxfp4_core.checkpoint.reader import Checkpoint

CHUNK_VALUES = 1 << 22
"""Values in one piece: 16 MiB in FP32, small enough for memory and large enough that reading costs little."""


@dataclass(frozen=True)
class Piece:
    """Some rows.

    Args:
        expert: index on the first axis of a stacked tensor ``[experts, ..., n, k]``, None for a plain matrix.
        start: first row, counted through all experts.
        stop: row behind the last one.
    """

    expert: int | None
    start: int
    stop: int


def logical_shape(shape: tuple[int, ...], *, transposed: bool) -> tuple[int, ...]:
    """Return ``[..., n, k]`` for the shape of a tensor in the file."""
    return (*shape[:-2], shape[-1], shape[-2]) if transposed else shape


def pieces(shape: tuple[int, ...], *, transposed: bool = False) -> Iterator[Piece]:
    """Cut a tensor of the logical shape ``[..., n, k]`` into pieces, in the order of the file.

    Args:
        shape: logical shape.
        transposed: whether the file has the axes ``[..., k, n]``.
    """
    if 0 in shape:
        return
    *lead, k = shape
    experts = lead[0] if len(lead) > 1 else 1
    rows = math.prod(lead) // experts
    step = shape[-2] if transposed else max(1, CHUNK_VALUES // k)
    for expert in range(experts):
        first = expert * rows
        for start in range(first, first + rows, step):
            yield Piece(expert if len(lead) > 1 else None, start, min(start + step, first + rows))


def read_piece(checkpoint: Checkpoint, name: str, piece: Piece, *, transposed: bool = False) -> torch.Tensor:
    """Read a piece as a matrix ``[rows, k]``.

    Args:
        checkpoint: where the tensor is.
        name: its name there.
        piece: which rows.
        transposed: whether the file has the axes ``[..., k, n]``.

    Raises:
        CheckpointError: the file can no longer be read.
    """
    if not transposed:
        return checkpoint.matrix_rows(name, piece.start, piece.stop)
    k = checkpoint.tensors[name].shape[-2]
    first = (piece.expert or 0) * k
    return checkpoint.matrix_rows(name, first, first + k).T.contiguous()


__all__ = ["CHUNK_VALUES", "Piece", "logical_shape", "pieces", "read_piece"]
