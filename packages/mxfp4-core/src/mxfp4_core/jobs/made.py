"""Weights whose values are made on the way: of MXFP4 that is dequantised, or of another kind that is quantised anew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.checkpoint.header import TensorInfo
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.dialects.base import Entry
from mxfp4_core.dialects.beside import Narrow
from mxfp4_core.dialects.raw import Bytes
from mxfp4_core.dialects.recipes import Read, Recipe
from mxfp4_core.jobs.pieces import flat

if TYPE_CHECKING:
    import torch

    from mxfp4_core.arithmetic.formats.base import Part

_CHUNK = 4 << 20
"""Values that are compared in one step."""


@dataclass(frozen=True)
class Dequantized(Narrow):
    """The values of a weight in a format of ours.

    Args:
        weight: canonical name.
        entry: the weight.
    """

    entry: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape, K last."""
        return self.entry.shape

    @property
    def stored(self) -> tuple[Recipe, ...]:
        """Its parts."""
        return tuple(self.entry.parts.values())

    @property
    def told(self) -> str:
        """The format."""
        return self.entry.format

    def numbers(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Dequantise in float32, where codes times powers of two are exact, and cut what K was padded with."""
        parts = {part.name: self.entry.parts[part.name].load(source, start, stop) for part in self._parts}
        return self._of(parts)[..., : self.shape[-1]]

    def chunks(self, source: Bytes, start: int, stop: int, most: int) -> Iterator[torch.Tensor]:
        """Cut stacked matrices, and rows, where their parts lie in the file as they are."""
        *lead, k = self.shape
        recipes = {part: self.entry.parts[part.name] for part in self._parts}
        inner = math.prod(lead[1:])
        if inner * k <= most or not all(isinstance(each, Read) for each in recipes.values()):
            yield from super().chunks(source, start, stop, most)
            return
        form, step = formats.get(self.entry.format), max(1, most // k)
        size = k if k <= most else max(1, most // form.block) * form.block
        for row in range(start * inner, stop * inner, step):
            rows = min(row + step, stop * inner) - row
            for first in range(0, k, size):
                last = min(first + size, k)
                parts = {}
                for part, recipe in recipes.items():
                    a, b = first // part.values, form.physical_k(last) // part.values
                    at, width = row * recipe.shape[-1] + a, b - a
                    values = flat(recipe).load(source, at, at + (width if size < k else rows * width))
                    parts[part.name] = values.reshape(-1, width)
                yield self._of(parts)[:, : last - first]

    @property
    def _parts(self) -> tuple[Part, ...]:
        return formats.get(self.entry.format).weight_parts

    def _of(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch

        return formats.get(self.entry.format).dequantize(parts, torch.float32).double()


@dataclass(frozen=True)
class Made:
    """Weights of a checkpoint that is not stored: what quantises one reads their values from it, row by row.

    Args:
        checkpoint: what their recipes read.
        recipes: a matrix for each weight, by name, ``[rows, K]``.
        shapes: their shapes ``[..., N, K]``.
    """

    checkpoint: Checkpoint
    recipes: dict[str, Recipe]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, checkpoint: Checkpoint, weights: Iterable[Narrow]) -> Made:
        """Return the values of these weights, rounded to float32."""
        recipes, shapes = {}, {}
        for each in weights:
            rows = math.prod(each.shape[:-1])
            recipes[each.weight] = each.rounded("F32").reshape(rows, each.shape[-1])
            shapes[each.weight] = each.shape
        return cls(checkpoint, recipes, shapes)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Headers by name."""
        return {
            name: TensorInfo(name, recipe.dtype, self.shapes[name], Path(), 0, recipe.nbytes)
            for name, recipe in self.recipes.items()
        }

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill a writable buffer with the bytes of a weight from ``start`` on; the rows that have them are made."""
        recipe = self.recipes[name]
        first, last = start // recipe.row_bytes, -(-(start + len(buffer)) // recipe.row_bytes)
        made = recipe.rows(self.checkpoint, first, last).contiguous().numpy().reshape(-1).view("uint8")
        at = start - first * recipe.row_bytes
        buffer[:] = made[at : at + len(buffer)].data


def signal_to_noise(weight: Narrow, source: Bytes, made: Narrow, result: Bytes) -> float:
    """Return the ratio of signal to noise of a weight and what was made of it, in dB; infinite where nothing is lost.

    Args:
        weight: what it was.
        source: what it is read from.
        made: what it became.
        result: what that is read from.
    """
    signal = noise = 0.0
    for start, stop in _pieces(weight):
        one, two = weight.numbers(source, start, stop), made.numbers(result, start, stop)
        both = one.isfinite() & two.isfinite()
        signal += float(one[both].square().sum())
        noise += float((one - two)[both].square().sum())
    return math.inf if noise == 0.0 else 10 * math.log10(signal / noise) if signal else -math.inf


def _pieces(weight: Narrow) -> Iterator[tuple[int, int]]:
    rows, size = weight.shape[0], max(1, math.prod(weight.shape[1:]))
    step = max(1, _CHUNK // size)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


__all__ = ["Dequantized", "Made", "signal_to_noise"]
