"""A quantised checkpoint of any dialect, as a stream that engines take: one tensor for each part of each weight.

Engines map the names of a checkpoint to their own parameters, and know the ones that a library saves in high precision:
``model.layers.0.mlp.up_proj.weight``, ``model.layers.0.mlp.experts.3.up_proj.weight``. So every part comes under such a
name and the suffix that the format gives it, whichever way the dialect stores it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.checkpoint.reader import Checkpoint, open_checkpoint
from mxfp4_core.dialects.base import Contents, Dialect, Entry
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.registry import read
from mxfp4_core.naming.vocabulary import parse_expert


@dataclass(frozen=True)
class StoredTensors:
    """A quantised checkpoint, open; iterating reads one tensor after the other, in the order of the files.

    Attributes:
        checkpoint: the files.
        dialect: who reads it.
        contents: what it says.

    Example:
        stored = StoredTensors.open("models/qwen3-mxfp4")
        model.load_weights(iter(stored))
    """

    checkpoint: Checkpoint
    dialect: Dialect
    contents: Contents

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> StoredTensors | None:
        """Open a folder, or a model of the Hub that is in the cache; None for one in high precision. Reads headers.

        Raises:
            CheckpointError: nothing to read, or damaged files.
            DialectError: it is quantised in a way that no dialect reads, or contradicts itself: codes without scales.
        """
        checkpoint = open_checkpoint(path)
        found = read(checkpoint)
        return None if found is None else cls(checkpoint, *found)

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """The quantised weights by name; each expert, and gate and up of each, is one of its own."""
        found: dict[str, Entry] = {}
        for entry in self.contents.entries.values():
            found |= {one.weight: one for one in _apart(entry)}
        return found

    @cached_property
    def tensors(self) -> Mapping[str, Recipe]:
        """Everything else by name; weights in FP8 are widened to BF16, which is exact."""
        widened = {name: beside.widened for name, beside in self.contents.beside.items()}
        return {**self.contents.tensors, **widened}

    @cached_property
    def headers(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of each weight and tensor, by name."""
        shapes = {name: entry.shape for name, entry in self.entries.items()}
        return {**shapes, **{name: recipe.shape for name, recipe in self.tensors.items()}}

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and tensor: ``X.weight`` and ``X.weight_scale`` of what is MXFP4, the rest as it is stored."""
        return self._stream(self.entries)

    def stacks(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the same with stacks of experts whole, each part ``[E, its K, N]``.

        For engines that take all experts at once and turn them, as libraries hold gpt-oss in high precision:
        ``model.layers.0.mlp.experts.gate_up_proj`` and ``….gate_up_proj_scale``, gate and up in turn where they are so.
        """
        entries = self.contents.entries
        whole = {
            f"{entry.weight}{part.suffix}"
            for entry in entries.values()
            for part in get(entry.format).parts
            if len(entry.shape) == 3
        }
        for name, tensor in self._stream(entries):
            yield name, tensor.transpose(-1, -2) if name in whole else tensor

    def _stream(self, entries: Mapping[str, Entry]) -> Iterator[tuple[str, torch.Tensor]]:
        order = {name: index for index, name in enumerate(self.checkpoint.tensors)}
        recipes: dict[str, Recipe] = dict(self.tensors)
        for entry in entries.values():
            for part in get(entry.format).parts:
                recipes[f"{entry.weight}{part.suffix}"] = entry.parts[part.name]
        for name in sorted(recipes, key=lambda each: min(map(order.__getitem__, recipes[each].names))):
            yield name, recipes[name].load(self.checkpoint)


def _apart(entry: Entry) -> Iterator[Entry]:
    """Yield the experts of a stack, each part under the name that it has where experts are stored apart."""
    expert = parse_expert(entry.weight)
    if expert is None or expert.index is not None or len(entry.shape) != 3:
        yield entry
        return
    count, n, k = entry.shape
    rows = n // len(expert.parts)
    for index in range(count):
        for place, part in enumerate(expert.parts):
            start, stop, step = place * rows, (place + 1) * rows, 1
            if entry.interleaved:
                start, stop, step = place, n, len(expert.parts)
            parts = {
                name: recipe
                if len(recipe.shape) < 3
                else recipe.take(index, index + 1).reshape(*recipe.shape[1:]).take(start, stop, step)
                for name, recipe in entry.parts.items()
            }
            weight = f"{expert.leaf(index, part)}.weight"
            yield replace(
                entry, weight=weight, shape=(rows, k), parts=parts, interleaved=False, transposed=False
            )


__all__ = ["StoredTensors"]
