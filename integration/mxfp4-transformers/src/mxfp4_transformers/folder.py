"""A checkpoint that is quantised already: a folder of any dialect, or the files of ours that transformers has chosen.

Of a folder, transformers gets a ``state_dict`` whose values are read when it asks for them. Everything in high
precision is there under its canonical name and takes the ordinary way through the conversions of the model. Of the
quantised weights there is one entry for each group that is made together, under the name of a parameter, which stands
for it; the parts are read by `Filler`. Of files, it gets what they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mxfp4_core.checkpoint import Checkpoint, TensorInfo, is_adapter, open_checkpoint
from mxfp4_core.dialects import NATIVE, Contents, Dialect, Recipe, Source, read
from mxfp4_core.errors import CheckpointError, LoadError
from mxfp4_transformers.messages import some

_SCALE = "_scale"


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
        """Open a folder; None for high precision, and for an adapter, which transformers puts on its base.

        Raises:
            CheckpointError: nothing to read, or damaged files.
            DialectError: it is quantised in a way that no dialect reads, or contradicts itself.
            LoadError: codes without scales, or scales without codes, in our own dialect.
        """
        if is_adapter(path):
            return None
        checkpoint = open_checkpoint(path)
        described = checkpoint.config.get("quantization_config")
        if isinstance(described, dict) and described.get("quant_method") == NATIVE.name:
            _check_pairs(checkpoint.tensors)
        found = read(checkpoint)
        return None if found is None else cls(checkpoint, *found)

    @classmethod
    def of_files(cls, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> Folder:
        """Read what files of our own dialect hold.

        Args:
            tensors: what their headers say; empty where transformers was given a state dict.
            config: what ``config.json`` says.

        Raises:
            CheckpointError: they are no safetensors files, or damaged.
            DialectError: the tensors contradict the config.
            LoadError: codes without scales, or scales without codes.
        """
        if not tensors:
            raise CheckpointError(
                "the quantised weights cannot be read",
                seen="no safetensors files",
                rule="MXFP4 checkpoints are safetensors files next to a config.json",
                fix="pass the folder that save_pretrained or `mxfp4 quantize` wrote",
            )
        _check_pairs(tensors)
        files = dict.fromkeys((info.file for info in tensors.values()), "")
        checkpoint = Checkpoint(next(iter(files)).parent, tensors, files, dict(config), ())
        return cls(checkpoint, NATIVE, NATIVE.read(Source.of(checkpoint)))

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


def _check_pairs(headers: Mapping[str, TensorInfo]) -> None:
    stored = {name: header.shape for name, header in headers.items() if header.dtype == "U8"}
    # A model may have bytes of its own that are no codes: masks, tables.
    codes = [name for name, shape in stored.items() if name.endswith(".weight") or len(shape) > 2]
    lost = [f"{name}{_SCALE}" for name in codes if not name.endswith(_SCALE)]
    lost += [name.removesuffix(_SCALE) for name in stored if name.endswith(_SCALE)]
    if lost := sorted(name for name in lost if name not in headers):
        raise LoadError(
            "the checkpoint is incomplete",
            seen=f"missing: {some(lost)}",
            rule="every tensor of codes has its scales, and every tensor of scales its codes",
            fix="write or download the checkpoint again",
        )


__all__ = ["Folder", "Lazy", "Marker"]
