"""Read tensors in pieces of bounded size, each with whole rows of the block axis.

What a piece is: the matrix of one expert (or of the only one), cut into ranges of rows. A stacked tensor
``[experts, n, k]`` gives its experts one after another, so no more than one expert's matrix is in memory,
and of a large matrix no more than `CHUNK_VALUES` values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from mxfp4_core.checkpoint.reader import Checkpoint

CHUNK_VALUES = 1 << 21
"""Values in one piece: 8 MiB in FP32, small enough for memory and large enough that reading costs little."""


@dataclass(frozen=True)
class Piece:
    """Some rows of one matrix.

    Args:
        expert: index on the first axis of a stacked tensor, None for a plain matrix.
        start: first index on the first axis of the file.
        stop: index behind the last one.
        whole: whether it is the whole tensor.
    """

    expert: int | None
    start: int
    stop: int
    whole: bool = False


def pieces(
    shape: tuple[int, ...], *, transposed: bool = False, values: int = CHUNK_VALUES
) -> Iterator[Piece]:
    """Cut a tensor of the logical shape ``[..., n, k]`` into pieces, in the order of the file.

    Args:
        shape: logical shape.
        transposed: whether the file has the axes ``[..., k, n]``; then a matrix is one piece, as its rows
            lie apart.
        values: values per piece.
    """
    if 0 in shape:
        return
    if len(shape) == 1 or (len(shape) == 2 and transposed):
        yield Piece(None, 0, shape[0], whole=True)
        return
    if len(shape) >= 3:
        for expert in range(shape[0]):
            yield Piece(expert, expert, expert + 1)
        return
    step = max(1, values // shape[-1])
    for start in range(0, shape[0], step):
        yield Piece(None, start, min(start + step, shape[0]))


def logical_shape(shape: tuple[int, ...], *, transposed: bool) -> tuple[int, ...]:
    """Return ``[..., n, k]`` for the shape of a tensor in the file."""
    return (*shape[:-2], shape[-1], shape[-2]) if transposed else shape


def read_piece(checkpoint: Checkpoint, name: str, piece: Piece, *, transposed: bool = False) -> torch.Tensor:
    """Read a piece as a matrix ``[rows, k]``.

    Args:
        checkpoint: where the tensor is.
        name: its name there.
        piece: which rows.
        transposed: whether the file has the axes ``[..., k, n]``.
    """
    rows = checkpoint.load(name) if piece.whole else checkpoint.rows(name, piece.start, piece.stop)
    if transposed:
        rows = rows.transpose(-1, -2)
    return rows.reshape(-1, rows.shape[-1]).contiguous()


__all__ = ["CHUNK_VALUES", "Piece", "logical_shape", "pieces", "read_piece"]
