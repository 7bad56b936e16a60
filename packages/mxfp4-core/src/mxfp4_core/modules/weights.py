"""A weight of a model that is MXFP4 or becomes it, and the names and shapes of its parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.arithmetic.formats.registry import get


@dataclass(frozen=True)
class Weight:
    """One parameter of a model.

    Attributes:
        name: full name in the model, for example ``model.layers.0.mlp.experts.gate_up_proj``.
        shape: logical shape ``[n, k]`` or ``[experts, n, k]``; k is last also where the model holds it first.
        transposed: the model, and its checkpoint in high precision, hold ``[experts, k, n]``.
        profile: name of the profile that decides the bytes; empty where a file does not say.
        format: name of the format, which decides the parts.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    profile: str = ""
    format: str = "mxfp4"

    @property
    def kind(self) -> Format:
        """The format."""
        return get(self.format)

    @property
    def names(self) -> dict[str, str]:
        """The full name of each part in the model's ``state_dict``, by name of the part."""
        return {part.name: f"{self.name}{part.suffix}" for part in self.kind.parts}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each part, k padded to whole blocks, by name of the part."""
        return self.kind.shapes(self.shape)

    @property
    def first_nbytes(self) -> int:
        """Bytes of the part that stands under the weight's own name."""
        part = self.kind.parts[0]
        return math.prod(self.shapes[part.name]) * part.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return self.kind.nbytes(self.shape)

    def empty(self, device: torch.device | str) -> dict[str, torch.Tensor]:
        """Allocate the parts, by name of the part."""
        return self.kind.empty(self.shape, device)


__all__ = ["Weight"]
