"""A checkpoint that is quantised already, as transformers is shown it: the rest by name, each weight by one name.

transformers gets a ``state_dict`` whose values are read when it asks for them. Everything in high precision is there
under its canonical name and takes the ordinary way through the conversions of the model. Of the quantised weights there
is one entry each, under the name of the parameter, which stands for it; the parts are read by `Filler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mxfp4_core.checkpoint import Checkpoint, open_checkpoint
from mxfp4_core.dialects import Contents, Dialect, Recipe, read


class Lazy:
    """What transformers takes for a slice of a file: it reads when it is indexed."""

    def __init__(self, recipe: Recipe, checkpoint: Checkpoint) -> None:
        self.recipe, self.checkpoint = recipe, checkpoint

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Read the whole tensor; transformers asks for nothing else where it does not shard."""
        return self.recipe.load(self.checkpoint)[index]


class Marker:
    """Stands for a quantised weight, whose parts nobody but `Filler` reads."""

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Return an empty tensor."""
        return torch.empty(0)


@dataclass(frozen=True)
class Folder:
    """A quantised checkpoint, open.

    Attributes:
        checkpoint: the files.
        dialect: who reads it.
        contents: what it says.
    """

    checkpoint: Checkpoint
    dialect: Dialect
    contents: Contents

    @classmethod
    def open(cls, path: Path) -> Folder | None:
        """Open a folder; None for a checkpoint in high precision.

        Raises:
            CheckpointError: nothing to read, or damaged files.
            DialectError: it is quantised in a way that no dialect reads, or contradicts itself.
        """
        checkpoint = open_checkpoint(path)
        found = read(checkpoint)
        return None if found is None else cls(checkpoint, *found)

    @cached_property
    def tensors(self) -> Mapping[str, Recipe]:
        """Everything that is not MXFP4, by canonical name; weights in FP8 are widened to BF16, which is exact."""
        widened = {name: beside.widened for name, beside in self.contents.beside.items()}
        return {**self.contents.tensors, **widened}

    @property
    def names(self) -> list[str]:
        """The canonical names of all weights and tensors."""
        return [*self.contents.entries, *self.tensors]

    @property
    def headers(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of each weight and tensor, by canonical name; of a quantised one, those of its values."""
        values = {name: ("U8", entry.shape) for name, entry in self.contents.entries.items()}
        return {**values, **{name: (recipe.dtype, recipe.shape) for name, recipe in self.tensors.items()}}

    def dtype(self) -> torch.dtype:
        """Return the dtype of most of what is in high precision, bfloat16 if nothing is."""
        sizes: dict[str, int] = {}
        for recipe in self.tensors.values():
            sizes[recipe.dtype] = sizes.get(recipe.dtype, 0) + recipe.nbytes
        known = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
        found = [(size, word) for word, size in sizes.items() if word in known]
        return known[max(found)[1]] if found else torch.bfloat16

    def plain(self) -> dict[str, Lazy]:
        """Return what transformers loads by itself, by canonical name."""
        return {name: Lazy(recipe, self.checkpoint) for name, recipe in self.tensors.items()}


__all__ = ["Folder", "Lazy", "Marker"]
