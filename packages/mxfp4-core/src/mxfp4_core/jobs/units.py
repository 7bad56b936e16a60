"""The units of work on a checkpoint: copy a tensor, or quantise one.

Each reads rows, hands on bytes and forgets them, so that memory is a few chunks and, for stacked experts that
are stored with K before N, one expert twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.arithmetic.shapes import padded
from mxfp4_core.checkpoint.assemble import Progress
from mxfp4_core.checkpoint.hashing import tensor_pieces
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.checkpoint.writer import TensorSpec
from mxfp4_core.errors import NonFiniteError

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 32 << 20
"""Bytes of the source that are quantised in one step."""


@dataclass(frozen=True)
class CopyUnit:
    """Copy a tensor byte for byte.

    Args:
        source: the checkpoint to read.
        tensor: its name there.
        name: its new name.
    """

    source: Checkpoint
    tensor: str
    name: str

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The one tensor, as it is in the source."""
        info = self.source.tensors[self.tensor]
        return (TensorSpec(self.name, info.dtype, info.shape),)

    @property
    def source_bytes(self) -> int:
        """Bytes that are read."""
        return self.source.tensors[self.tensor].nbytes

    def stream(self, progress: Progress) -> Iterator[tuple[str, memoryview]]:
        """Yield the data in pieces."""
        for piece in tensor_pieces(self.source, self.tensor):
            yield self.name, piece
            progress(piece.nbytes)


@dataclass(frozen=True)
class PairUnit:
    """Copy codes and scales byte for byte, under other names; they stay in one file.

    Args:
        codes: the copy of the codes.
        scales: the copy of the scales.
    """

    codes: CopyUnit
    scales: CopyUnit

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Codes and scales."""
        return (*self.codes.specs, *self.scales.specs)

    @property
    def source_bytes(self) -> int:
        """Bytes that are read."""
        return self.codes.source_bytes + self.scales.source_bytes

    def stream(self, progress: Progress) -> Iterator[tuple[str, memoryview]]:
        """Yield the codes, then the scales."""
        yield from self.codes.stream(progress)
        yield from self.scales.stream(progress)


@dataclass(frozen=True)
class QuantizeUnit:
    """Quantise one weight.

    Args:
        source: the checkpoint to read.
        tensor: name of the weight ``[..., N, K]``, or ``[..., K, N]`` if ``transposed``.
        names: names for codes and scales.
        profile: resolved profile.
        nonfinite: what to do about NaN and infinity.
        transposed: whether the source has K before N.
    """

    source: Checkpoint
    tensor: str
    names: tuple[str, str]
    profile: str
    nonfinite: Literal["refuse", "nan"] = "refuse"
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape ``[..., N, K]``."""
        shape = self.source.tensors[self.tensor].shape
        return (*shape[:-2], shape[-1], shape[-2]) if self.transposed else shape

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Codes U8 ``[..., N, Kp / 2]`` and scales U8 ``[..., N, Kp / 32]``; Kp is K padded to whole blocks."""
        *leading, k = self.shape
        k = padded(k, BLOCK)
        codes, scales = self.names
        return (
            TensorSpec(codes, "U8", (*leading, k // 2)),
            TensorSpec(scales, "U8", (*leading, k // BLOCK)),
        )

    @property
    def source_bytes(self) -> int:
        """Bytes that are read."""
        return self.source.tensors[self.tensor].nbytes

    def stream(self, progress: Progress) -> Iterator[tuple[str, memoryview]]:
        """Yield the codes chunk by chunk, then the scales, which are 1/16 of them and are held until then.

        Raises:
            NonFiniteError: NaN or infinity at an index of the weight, unless ``nonfinite`` is ``"nan"``.
        """
        from mxfp4_core.arithmetic.quantize import quantize

        scales: list[memoryview] = []
        for start, matrix in self._matrices():
            try:
                packed = quantize(
                    matrix, profile=self.profile, tail="pad", nonfinite=self.nonfinite, name=self.tensor
                )
            except NonFiniteError:
                self._refuse(start, matrix)
            yield self.names[0], packed.codes.numpy().data
            scales.append(packed.scales.numpy().data)
            progress(matrix.nbytes)
        for part in scales:
            yield self.names[1], part

    def _matrices(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield ``[n, K]`` pieces, each with the number of rows before it."""
        shape = self.shape
        if not math.prod(shape):
            return
        if self.transposed:
            for index in range(math.prod(shape[:-2])):
                stored = self.source.matrix_rows(self.tensor, index * shape[-1], (index + 1) * shape[-1])
                yield index * shape[-2], stored.t()
            return
        rows, info = math.prod(shape[:-1]), self.source.tensors[self.tensor]
        step = max(1, CHUNK_BYTES * rows // info.nbytes)
        for start in range(0, rows, step):
            yield start, self.source.matrix_rows(self.tensor, start, min(start + step, rows))

    def _refuse(self, start: int, matrix: torch.Tensor) -> NoReturn:
        import torch

        bad = (~torch.isfinite(matrix)).nonzero()
        row, k = bad[0].tolist()
        index: list[int] = []
        flat = start + row
        for size in reversed(self.shape[:-1]):
            flat, at = divmod(flat, size)
            index.insert(0, at)
        index.append(k)
        if self.transposed:
            index[-2:] = index[-1], index[-2]
        raise NonFiniteError(
            f"tensor {self.tensor!r} cannot be quantised",
            seen=f"{float(matrix[row, k])} at index {index}, {len(bad)} such value(s) in this piece of it",
            rule="a weight is finite; MXFP4 can only make the whole block NaN",
            fix="repair the checkpoint, or set nonfinite = 'nan' to make those blocks NaN",
        )


__all__ = ["CHUNK_BYTES", "CopyUnit", "PairUnit", "QuantizeUnit"]
