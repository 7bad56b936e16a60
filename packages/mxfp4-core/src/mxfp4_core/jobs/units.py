"""The units of work on a checkpoint: copy what is stored, through a recipe, or quantise a weight.

Each holds names and no open file, so it can be pickled to another process. It reads rows, hands on bytes and
forgets them, so that memory is a few chunks, however long a row is, and the scales of one weight; for a matrix that is
stored with K before N its parts, a quarter of its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.checkpoint.assemble import Progress
from mxfp4_core.checkpoint.direct import Span
from mxfp4_core.checkpoint.header import TensorInfo
from mxfp4_core.checkpoint.overlap import ahead
from mxfp4_core.checkpoint.reader import TORCH_DTYPES, Checkpoint
from mxfp4_core.checkpoint.remote import RemotePath
from mxfp4_core.checkpoint.writer import TensorSpec
from mxfp4_core.dialects.pairs import DTYPES
from mxfp4_core.dialects.raw import Bytes
from mxfp4_core.dialects.recipes import Read, Recipe
from mxfp4_core.errors import NonFiniteError

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 8 << 20
"""Bytes of the source that are quantised in one step: they stay in the cache of the processor meanwhile."""

_REMOTE_CHUNKS = 4
"""As many at once of a remote source, where a request takes its time."""


class Stored(Bytes, Protocol):
    """Stored tensors with their headers: a `Checkpoint`, or some of its tensors."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Headers by name."""
        ...


@dataclass(frozen=True)
class PartsUnit:
    """Write the tensors that one weight is stored as; they stay in one file.

    Args:
        source: what the recipes read.
        stored: names and recipes, in order.
    """

    source: Bytes
    stored: tuple[tuple[str, Recipe], ...]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors as they will be stored."""
        return tuple(TensorSpec(name, recipe.dtype, recipe.shape) for name, recipe in self.stored)

    @property
    def source_bytes(self) -> int:
        """Bytes that are read."""
        return sum(recipe.source_bytes for _, recipe in self.stored)

    def work(self, samples: Mapping[str, str]) -> str:
        """Return a text that is the same where the same bytes come out; `tensor_samples` stand for the source."""
        names = dict.fromkeys(name for _, recipe in self.stored for name in recipe.names)
        return repr((self.stored, [samples[name] for name in names]))

    def stream(self, progress: Progress) -> Iterator[tuple[str, memoryview]]:
        """Yield the data in pieces."""
        for name, recipe in self.stored:
            left = recipe.source_bytes
            for piece in recipe.pieces(self.source):
                yield name, piece
                done = min(left, piece.nbytes)
                progress(done)
                left -= done
            progress(left)  # what was read and is not part of the result


@dataclass(frozen=True)
class CopyUnit(PartsUnit):
    """Write a tensor that is not quantised, byte for byte as its recipe makes it."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, tensor: str, name: str | None = None) -> CopyUnit:
        """Copy a tensor as it is, under its own name or another one."""
        info = checkpoint.tensors[tensor]
        recipe = Read(info.dtype, info.shape, tensor)
        return cls(checkpoint, ((name or tensor, recipe),))

    @property
    def reads(self) -> Span | None:
        """Return what is read from the first to the last byte and written as it is."""
        if len(self.stored) != 1 or not isinstance(self.source, Checkpoint):
            return None
        recipe = self.stored[0][1]
        info = self.source.tensors[recipe.names[0]] if isinstance(recipe, Read) else None
        if info is None or isinstance(info.file, RemotePath) or recipe.nbytes != info.nbytes:
            return None
        return Span(info, 1, CHUNK_BYTES) if info.nbytes else None

    def stream(
        self, progress: Progress, chunks: Iterator[torch.Tensor] | None = None
    ) -> Iterator[tuple[str, memoryview]]:
        """Yield the data in pieces: those of `reads` where they are given, else read here."""
        if chunks is None:
            yield from super().stream(progress)
            return
        for chunk in chunks:
            yield self.stored[0][0], chunk.numpy().data
            progress(chunk.nbytes)


@dataclass(frozen=True)
class QuantizeUnit:
    """Quantise one weight.

    Args:
        source: where the weight is.
        tensor: name of the weight ``[..., N, K]``, or ``[..., K, N]`` if ``transposed``.
        names: names for the parts of the format, in its order.
        profile: resolved profile.
        nonfinite: what to do about NaN and infinity.
        transposed: whether the source has K before N.
        format: name of the format.
        layouts: dtype and shape under which the bytes of each part are stored; those of the part if empty.
    """

    source: Stored
    tensor: str
    names: tuple[str, ...]
    profile: str
    nonfinite: Literal["refuse", "nan"] = "refuse"
    transposed: bool = False
    format: str = "mxfp4"
    layouts: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def form(self) -> Format:
        """The format."""
        return formats.get(self.format)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape ``[..., N, K]``."""
        shape = self.source.tensors[self.tensor].shape
        return (*shape[:-2], shape[-1], shape[-2]) if self.transposed else shape

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """One tensor for each part, K padded to whole blocks."""
        shapes = self.form.shapes(self.shape)
        layouts = self.layouts or [(DTYPES[part.dtype], shapes[part.name]) for part in self.form.parts]
        return tuple(TensorSpec(name, *each) for name, each in zip(self.names, layouts, strict=True))

    @property
    def source_bytes(self) -> int:
        """Bytes that are read."""
        return self.source.tensors[self.tensor].nbytes

    def work(self, samples: Mapping[str, str]) -> str:
        """Return a text that is the same where the same bytes come out; `tensor_samples` stand for the source."""
        how = self.names, self.profile, self.nonfinite, self.transposed, self.format, self.layouts
        return repr((self.tensor, samples[self.tensor], how))

    @property
    def runs_ahead(self) -> bool:
        """Each piece is made anew; where a piece is a whole matrix, only one is held."""
        return not self.transposed

    @property
    def reads(self) -> Span | None:
        """Return what is read from the first to the last byte, in whole rows that are no longer than a chunk."""
        info = self.source.tensors[self.tensor]
        stored = isinstance(self.source, Checkpoint) and not isinstance(info.file, RemotePath)
        if not stored or self.transposed or not info.nbytes:
            return None
        row = info.nbytes // math.prod(info.shape[:-1])
        return Span(info, row, CHUNK_BYTES) if row <= CHUNK_BYTES else None

    def stream(
        self, progress: Progress, chunks: Iterator[torch.Tensor] | None = None
    ) -> Iterator[tuple[str, memoryview]]:
        """Yield the first part chunk by chunk, then the others, which are small and are held until then.

        Args:
            progress: called with the number of bytes since the last call.
            chunks: the bytes of `reads` in pieces, each valid until the next is asked for; read here if None.

        Raises:
            NonFiniteError: NaN or infinity at an index of the weight, unless ``nonfinite`` is ``"nan"``.
        """
        import torch

        form = self.form
        held: dict[str, list[memoryview]] = {part.name: [] for part in form.parts[1:]}
        for start, parts in self._quantized(progress, chunks):
            raw = {name: part.view(torch.uint8).numpy().data for name, part in parts.items()}
            yield self.names[0], raw[form.parts[0].name]
            for part in form.parts[1:]:
                # What belongs to the input is the same for every row.
                if part.operand == "weight" or start == 0:
                    held[part.name].append(raw[part.name])
        for name, part in zip(self.names[1:], form.parts[1:], strict=True):
            for piece in held[part.name]:
                yield name, piece

    def _quantized(
        self, progress: Progress, chunks: Iterator[torch.Tensor] | None
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Yield parts in the order of the file, each with the number of rows before it."""
        import torch

        form, k, whole = self.form, self.shape[-1], dict[str, torch.Tensor]()
        matrices = ahead(self._matrices()) if chunks is None else self._rows(chunks)
        for start, first, matrix in matrices:
            parts = form.empty(matrix.shape)
            weight = {part.name: parts[part.name] for part in form.weight_parts}
            missing = form.physical_k(matrix.shape[-1]) - matrix.shape[-1]
            padded = torch.nn.functional.pad(matrix, (0, missing)) if missing else matrix
            try:
                form.quantize_into(
                    padded, weight, profile=self.profile, nonfinite=self.nonfinite, name=self.tensor
                )
            except NonFiniteError as error:
                raise error.within(f"tensor {self.tensor!r}", partial(self._index, start, first)) from None
            last = first + matrix.shape[-1] == k
            if self.transposed and not (first == 0 and last):
                whole = whole or form.empty((matrix.shape[0], k))
                for part in form.parts:
                    at, made = first // part.values, parts[part.name]
                    whole[part.name][..., at : at + made.shape[-1]] = made
                parts = whole
            if last or not self.transposed:
                yield start, parts
                whole = {}
            progress(matrix.nbytes)

    def _rows(self, chunks: Iterator[torch.Tensor]) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield what was read ahead as `_matrices` would."""
        import torch

        dtype: torch.dtype = getattr(torch, TORCH_DTYPES[self.source.tensors[self.tensor].dtype])
        start = 0
        for chunk in chunks:
            if chunk.storage_offset() % dtype.itemsize:  # the file has them at an odd place
                chunk = chunk.clone()
            matrix = chunk.view(dtype).reshape(-1, self.shape[-1])
            yield start, 0, matrix
            start += len(matrix)

    def _matrices(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield ``[n, k]`` pieces of whole blocks, each with the numbers of rows and of values along K before it."""
        shape, info = self.shape, self.source.tensors[self.tensor]
        if not math.prod(shape):
            return
        (*lead, k), rows, block = shape, math.prod(shape[:-1]), self.form.block
        # How many values along K a chunk has, for all rows that are read together.
        n = lead[-1] if self.transposed else 1
        most = CHUNK_BYTES * (_REMOTE_CHUNKS if isinstance(info.file, RemotePath) else 1)
        size = max(block, most * rows * k // info.nbytes // n // block * block)
        if self.transposed:
            read = Read(info.dtype, (rows // n * k, n), self.tensor)
            for matrix in range(rows // n):
                for first in range(0, k, size):
                    stored = read.load(self.source, matrix * k + first, matrix * k + min(first + size, k))
                    yield matrix * n, first, stored.t()
        elif size < k:
            read = Read(info.dtype, (rows * k,), self.tensor)
            for row in range(rows):
                for first in range(0, k, size):
                    values = read.load(self.source, row * k + first, row * k + min(first + size, k))
                    yield row, first, values.reshape(1, -1)
        else:
            read, step = Read(info.dtype, (rows, k), self.tensor), max(1, most * rows // info.nbytes)
            for start in range(0, rows, step):
                yield start, 0, read.load(self.source, start, min(start + step, rows))

    def _index(self, start: int, first: int, row: int, k: int) -> tuple[int, ...]:
        """Return where the source has a value of the piece that begins at row `start` of all, at `first` along K."""
        *lead, n = self.shape[:-1]
        flat, row = divmod(start + row, n)
        index: list[int] = []
        for size in reversed(lead):
            flat, at = divmod(flat, size)
            index.insert(0, at)
        return (*index, first + k, row) if self.transposed else (*index, row, first + k)


__all__ = ["CHUNK_BYTES", "CopyUnit", "PartsUnit", "QuantizeUnit", "Stored"]
