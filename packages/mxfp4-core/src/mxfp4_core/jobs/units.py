"""The units of work on a checkpoint: copy what is stored, through a recipe, or quantise a weight.

Each holds names and no open file, so it can be pickled to another process. It reads rows, hands on bytes and
forgets them, so that memory is a few chunks and, for stacked experts that are stored with K before N, one expert twice.
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
from mxfp4_core.checkpoint.header import TensorInfo
from mxfp4_core.checkpoint.overlap import ahead
from mxfp4_core.checkpoint.writer import TensorSpec
from mxfp4_core.dialects.pairs import DTYPES
from mxfp4_core.dialects.raw import Bytes
from mxfp4_core.dialects.recipes import Read, Recipe
from mxfp4_core.errors import NonFiniteError

if TYPE_CHECKING:
    import torch

    from mxfp4_core.checkpoint.reader import Checkpoint

CHUNK_BYTES = 32 << 20
"""Bytes of the source that are quantised in one step."""


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
        """Each piece is made anew; where a piece is a whole expert, only one is held."""
        return not self.transposed

    def stream(self, progress: Progress) -> Iterator[tuple[str, memoryview]]:
        """Yield the first part chunk by chunk, then the others, which are small and are held until then.

        Raises:
            NonFiniteError: NaN or infinity at an index of the weight, unless ``nonfinite`` is ``"nan"``.
        """
        import torch

        form = self.form
        held: dict[str, list[memoryview]] = {part.name: [] for part in form.parts[1:]}
        matrices = self._matrices()
        for start, matrix in ahead(matrices) if self.runs_ahead else matrices:
            parts = form.empty(matrix.shape)
            weight = {part.name: parts[part.name] for part in form.weight_parts}
            missing = form.physical_k(matrix.shape[-1]) - matrix.shape[-1]
            whole = torch.nn.functional.pad(matrix, (0, missing)) if missing else matrix
            try:
                form.quantize_into(
                    whole, weight, profile=self.profile, nonfinite=self.nonfinite, name=self.tensor
                )
            except NonFiniteError as error:
                raise error.within(f"tensor {self.tensor!r}", partial(self._index, start)) from None
            raw = {name: part.view(torch.uint8).numpy().data for name, part in parts.items()}
            yield self.names[0], raw[form.parts[0].name]
            for part in form.parts[1:]:
                # What belongs to the input is the same for every row.
                if part.operand == "weight" or not held[part.name]:
                    held[part.name].append(raw[part.name])
            progress(matrix.nbytes)
        for name, part in zip(self.names[1:], form.parts[1:], strict=True):
            for piece in held[part.name]:
                yield name, piece

    def _matrices(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield ``[n, K]`` pieces, each with the number of rows before it."""
        shape, info = self.shape, self.source.tensors[self.tensor]
        if not math.prod(shape):
            return
        read = Read(info.dtype, info.shape, self.tensor).reshape(math.prod(info.shape[:-1]), info.shape[-1])
        if self.transposed:
            for index in range(math.prod(shape[:-2])):
                stored = read.load(self.source, index * shape[-1], (index + 1) * shape[-1])
                yield index * shape[-2], stored.t()
            return
        rows = math.prod(shape[:-1])
        step = max(1, CHUNK_BYTES * rows // info.nbytes)
        for start in range(0, rows, step):
            yield start, read.load(self.source, start, min(start + step, rows))

    def _index(self, start: int, row: int, k: int) -> tuple[int, ...]:
        """Return where the source has a value of the matrix that begins at row `start` of all."""
        *lead, n = self.shape[:-1]
        flat, row = divmod(start + row, n)
        index: list[int] = []
        for size in reversed(lead):
            flat, at = divmod(flat, size)
            index.insert(0, at)
        return (*index, k, row) if self.transposed else (*index, row, k)


__all__ = ["CHUNK_BYTES", "CopyUnit", "PartsUnit", "QuantizeUnit", "Stored"]
