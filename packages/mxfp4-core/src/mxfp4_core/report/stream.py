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
        start: first row, in the first axis of the file.
        stop: row behind the last one.
    """

    expert: int | None
    start: int
    stop: int


def pieces(shape: tuple[int, ...], *, values: int = CHUNK_VALUES) -> Iterator[Piece]:
    """Cut a tensor of the logical shape ``[..., n, k]`` into pieces, in the order of the file."""
    if 0 in shape:
        return
    if len(shape) >= 3:
        for expert in range(shape[0]):
            yield Piece(expert, expert, expert + 1)
        return
    rows = shape[0] if len(shape) == 2 else 1
    step = max(1, values // max(1, shape[-1]))
    for start in range(0, rows, step):
        yield Piece(None, start, min(start + step, rows))


def read_piece(checkpoint: Checkpoint, name: str, piece: Piece, *, transposed: bool = False) -> torch.Tensor:
    """Read a piece as a matrix ``[rows, k]``.

    Args:
        checkpoint: where the tensor is.
        name: its name there.
        piece: which rows.
        transposed: whether the file has the axes ``[..., k, n]``; stacked tensors only.
    """
    info = checkpoint.tensors[name]
    if len(info.shape) < 2:
        return checkpoint.load(name).reshape(1, -1)
    rows = checkpoint.rows(name, piece.start, piece.stop)
    if transposed:
        rows = rows.transpose(-1, -2)
    return rows.reshape(-1, rows.shape[-1]).contiguous()


__all__ = ["CHUNK_VALUES", "Piece", "pieces", "read_piece"]
