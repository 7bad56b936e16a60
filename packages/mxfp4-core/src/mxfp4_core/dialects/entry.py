"""One quantised weight of a checkpoint: its name, its shape, and where its parts come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.naming.families import gate_of


@dataclass(frozen=True)
class Entry:
    """One quantised weight of a checkpoint.

    Args:
        weight: canonical name of the weight, with ``.weight`` for a linear and without for stacked experts.
        shape: logical shape ``[..., N, K]``, before any padding of K to whole blocks.
        parts: for each part of the format the recipe that makes it, in the dtype and shape that the format gives it.
        format: name of the format.
        transposed: whether the weight has the axes ``[..., K, N]`` in the model that was quantised. The parts do not.
        interleaved: whether rows of gate and up alternate in a fused weight of experts; else gate is above up.
        profile: resolved profile of this weight, where it is not that of the contents.
        activation: activation mode of this weight, where it is not that of the contents.
        known: who owns the model says that it is multiplied with, whatever its name.
        reader: class of the model whose code reads the weight, beside calling its module; empty if none is known.
    """

    weight: str
    shape: tuple[int, ...]
    parts: Mapping[str, Recipe]
    format: str = "mxfp4"
    transposed: bool = False
    interleaved: bool = False
    profile: str = ""
    activation: str = ""
    known: bool = False
    reader: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The stored tensors that its parts are made from, each once."""
        return tuple(dict.fromkeys(name for part in self.parts.values() for name in part.names))

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())


def alternates(weight: str, model_type: str) -> bool:
    """Return whether a model is known to hold rows of gate and up in turn in a fused weight of stacked experts.

    Args:
        weight: canonical name.
        model_type: as in config.json, that of the language model where there are several.
    """
    gate = gate_of(model_type) if weight.endswith("experts.gate_up_proj") else None
    return gate is not None and gate.interleaved


__all__ = ["Entry", "alternates"]
