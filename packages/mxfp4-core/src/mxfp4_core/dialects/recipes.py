"""Recipes: where a tensor comes from, and which exact transforms of bytes make it out of what a file stores.

A recipe is a tree: its leaves read stored tensors by name, everything above moves bytes and changes none. It knows
dtype and shape before anything is read, and loads any range of its first axis in memory of about that range.
It is plain data: compare it, hash it, pickle it to another process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mxfp4_core.checkpoint.header import DTYPE_BITS
from mxfp4_core.checkpoint.reader import TORCH_DTYPES
from mxfp4_core.dialects.raw import CARRIERS, MOVED, PIECE, Bytes, misfit, nothing, whole_bytes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Recipe(ABC):
    """A tensor that can be made from stored ones.

    Args:
        dtype: safetensors word, for example ``"U8"`` or ``"F8_E8M0"``.
        shape: sizes of the axes in elements.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def children(self) -> tuple[Recipe, ...]:
        """The recipes that this one is made from; none for one that reads a stored tensor."""
        return ()

    @abstractmethod
    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Make the indices ``start`` to ``stop`` of the first axis, in integers of the width of the dtype.

        A tensor without axes counts as one row. Callers want `load`; a node of one's own implements this.
        """

    @property
    def names(self) -> tuple[str, ...]:
        """The stored tensors that are read, each once."""
        return tuple(dict.fromkeys(name for child in self.children for name in child.names))

    @property
    def source_bytes(self) -> int:
        """Bytes that making the whole tensor reads."""
        return sum(child.source_bytes for child in self.children) if self.children else self.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first axis; all bytes where there is no axis."""
        return math.prod(self.shape[1:]) * DTYPE_BITS[self.dtype] // 8

    def load(self, source: Bytes, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Make a range of the first axis; memory is a small multiple of that range.

        Args:
            source: where the stored tensors are.
            start: first index.
            stop: the one behind the last; the end if None.

        Returns:
            A contiguous CPU tensor ``[stop - start, *shape[1:]]`` in the torch dtype of the same name; ``F4`` comes as
            ``float4_e2m1fn_x2`` with half the last axis.

        Raises:
            CheckpointError: a stored tensor is missing or can no longer be read.
            DialectError: a range outside of the tensor, or a dtype that torch lacks.
        """
        import torch

        rows = self.shape[0] if self.shape else 1
        stop = rows if stop is None else stop
        if not 0 <= start <= stop <= rows:
            misfit(
                f"rows {start} to {stop} of shape {list(self.shape)}", "the range lies inside the first axis"
            )
        name = TORCH_DTYPES.get(self.dtype)
        if name is None or not hasattr(torch, name):
            misfit(f"dtype {self.dtype}", "torch has the dtype")
        made = self.rows(source, start, stop).contiguous().view(getattr(torch, name))
        return made if self.shape else made.reshape(())

    def pieces(self, source: Bytes, most: int = PIECE) -> Iterator[memoryview]:
        """Yield all bytes in order, ``most`` or one row at a time; a piece is valid until the next is asked for."""
        if not self.nbytes:
            return
        rows = self.shape[0] if self.shape else 1
        step = max(1, most // self.row_bytes)
        for start in range(0, rows, step):
            made = self.rows(source, start, min(start + step, rows)).contiguous()
            yield made.numpy().reshape(-1).view("uint8").data

    def reinterpret(self, dtype: str) -> Recipe:
        """Give the same bytes another dtype; one of another width changes the last axis.

        Raises:
            DialectError: the last axis does not have whole elements of it.
        """
        if dtype not in DTYPE_BITS:
            misfit(f"dtype {dtype!r}", f"a dtype is one of {' '.join(DTYPE_BITS)}")
        if DTYPE_BITS[self.dtype] != DTYPE_BITS[dtype]:
            misfit(f"{self.dtype} {list(self.shape)} as {dtype}", "both dtypes have the same width")
        return self if dtype == self.dtype else Reinterpret(dtype, self.shape, self)

    def reshape(self, *shape: int) -> Recipe:
        """Divide or join axes; the elements stay in order.

        Raises:
            DialectError: another number of elements, or elements narrower than a byte.
        """
        whole_bytes(self.dtype, "reshaped")
        if math.prod(shape) != math.prod(self.shape) or min(shape, default=1) < 0:
            misfit(f"{list(self.shape)} as {list(shape)}", "both have the same number of elements")
        return self if shape == self.shape else Reshape(self.dtype, shape, self)

    def permute(self, *axes: int) -> Recipe:
        """Reorder the axes, as ``torch.permute``. One that moves the first axis reads everything for any range.

        Raises:
            DialectError: not each axis once.
        """
        whole_bytes(self.dtype, "permuted")
        if sorted(axes) != list(range(len(self.shape))):
            misfit(f"axes {list(axes)} of {list(self.shape)}", "each axis is named once")
        shape = tuple(self.shape[axis] for axis in axes)
        return self if list(axes) == sorted(axes) else Permute(self.dtype, shape, self, axes)

    def take(self, start: int = 0, stop: int | None = None, step: int = 1, *, axis: int = 0) -> Recipe:
        """Take the indices ``start``, ``start + step``, ... before ``stop`` of one axis: a slice, or every other row.

        Raises:
            DialectError: no such axis, or a range outside of it.
        """
        whole_bytes(self.dtype, "cut")
        if not 0 <= axis < len(self.shape):
            misfit(f"axis {axis} of {list(self.shape)}", "the axis exists")
        stop = self.shape[axis] if stop is None else stop
        if not 0 <= start <= stop <= self.shape[axis] or step < 1:
            misfit(f"{start}:{stop}:{step} of axis {axis} of {list(self.shape)}", "it lies inside the axis")
        if (start, stop, step) == (0, self.shape[axis], 1):
            return self
        count = len(range(start, stop, step))
        return Take(self.dtype, (*self.shape[:axis], count, *self.shape[axis + 1 :]), self, axis, start, step)


@dataclass(frozen=True)
class Read(Recipe):
    """Read a stored tensor, or whole rows of it, under any dtype and shape of the same bytes.

    Args:
        name: its name in the file.
        at: its first byte that is read.
    """

    name: str
    at: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The one name."""
        return (self.name,)

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Read the bytes of the range and no others."""
        import torch

        data = torch.empty((stop - start) * self.row_bytes, dtype=torch.uint8)
        if data.numel():
            source.read_into(self.name, self.at + start * self.row_bytes, data.numpy().data)
        bits, last = DTYPE_BITS[self.dtype], self.shape[1:]
        if bits < 8:
            return data.reshape(stop - start, *last[:-1], last[-1] * bits // 8) if last else data
        return data.view(getattr(torch, CARRIERS[bits])).reshape(stop - start, *last)

    def pieces(self, source: Bytes, most: int = PIECE) -> Iterator[memoryview]:
        """Yield the bytes without torch, in pieces that need not end with a row."""
        buffer = memoryview(bytearray(min(most, self.nbytes)))
        for start in range(0, self.nbytes, most):
            piece = buffer[: min(most, self.nbytes - start)]
            source.read_into(self.name, self.at + start, piece)
            yield piece

    def reinterpret(self, dtype: str) -> Recipe:
        """Read the same bytes as another dtype, also of another width: ``F4`` ``[K]`` as ``U8`` ``[K/2]``."""
        old, new = DTYPE_BITS[self.dtype], DTYPE_BITS.get(dtype, 0)
        if not new or old == new:
            return super().reinterpret(dtype) if not new else replace(self, dtype=dtype)
        if not self.shape or self.shape[-1] * old % new:
            misfit(f"{self.dtype} {list(self.shape)} as {dtype}", "the last axis has whole elements of it")
        return replace(self, dtype=dtype, shape=(*self.shape[:-1], self.shape[-1] * old // new))

    def reshape(self, *shape: int) -> Recipe:
        """Read the same bytes in another shape."""
        checked = super().reshape(*shape)
        return self if checked is self else replace(self, shape=shape)

    def take(self, start: int = 0, stop: int | None = None, step: int = 1, *, axis: int = 0) -> Recipe:
        """Read fewer rows where they lie together."""
        taken = super().take(start, stop, step, axis=axis)
        if taken is self or axis or step > 1:
            return taken
        return replace(self, shape=taken.shape, at=self.at + start * self.row_bytes)


@dataclass(frozen=True)
class _Wrapped(Recipe):
    of: Recipe

    @property
    def children(self) -> tuple[Recipe, ...]:
        """The one below."""
        return (self.of,)


@dataclass(frozen=True)
class Reinterpret(_Wrapped):
    """The same bytes as another dtype of the same width; made by `Recipe.reinterpret`."""

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Pass the integers on."""
        return self.of.rows(source, start, stop)


@dataclass(frozen=True)
class Reshape(_Wrapped):
    """The same elements in another shape; made by `Recipe.reshape`."""

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Make the rows below that cover the range, and cut."""
        row, below = math.prod(self.shape[1:]), math.prod(self.of.shape[1:])
        size = (stop - start) * row
        if not size:
            return nothing(self.dtype, (stop - start, *self.shape[1:]))
        first, last = start * row // below, -(-stop * row // below)
        at = start * row - first * below
        return (
            self.of.rows(source, first, last)
            .reshape(-1)[at : at + size]
            .reshape(stop - start, *self.shape[1:])
        )


@dataclass(frozen=True)
class Permute(_Wrapped):
    """The axes in another order; made by `Recipe.permute`."""

    axes: tuple[int, ...]

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Read the range where the first axis stays; else everything below, in pieces, and keep the range of each."""
        if self.axes[0] == 0:
            return self.of.rows(source, start, stop).permute(self.axes)
        step = max(1, PIECE // max(1, self.of.row_bytes))
        made, count = nothing(self.dtype, (stop - start, *self.shape[1:])), self.of.shape[0]
        for first in range(0, count if made.numel() else 0, step):
            below = self.of.rows(source, first, min(first + step, count)).permute(self.axes)[start:stop]
            made.narrow(self.axes.index(0), first, min(step, count - first)).copy_(below)
        return made

    def pieces(self, source: Bytes, most: int = PIECE) -> Iterator[memoryview]:
        """Yield all bytes in order, in few pieces where each reads everything below."""
        return super().pieces(source, most if self.axes[0] == 0 else max(most, MOVED))


@dataclass(frozen=True)
class Take(_Wrapped):
    """Indices of one axis at a constant distance; made by `Recipe.take`."""

    axis: int
    first: int
    step: int

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Read from the first to the last row that is taken, or whole rows, and cut."""
        if start == stop:
            return nothing(self.dtype, (0, *self.shape[1:]))
        if self.axis:
            last = self.first + (self.shape[self.axis] - 1) * self.step + 1
            cut = (*[slice(None)] * self.axis, slice(self.first, max(last, self.first), self.step))
            return self.of.rows(source, start, stop)[cut]
        first, last = self.first + start * self.step, self.first + (stop - 1) * self.step + 1
        return self.of.rows(source, first, last)[:: self.step]


__all__ = ["Permute", "Read", "Recipe", "Reinterpret", "Reshape", "Take"]
