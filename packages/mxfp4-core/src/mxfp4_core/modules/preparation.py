"""What modules that are prepared alike share, known by a text: operators and compilers take tensors and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from mxfp4_core.backend.problem import Problem
from mxfp4_core.backend.protocol import Backend, Packed
from mxfp4_core.modules.refit import Kept


@dataclass(frozen=True)
class Preparation:
    """How a backend has packed the weights of a module.

    Attributes:
        backend: who computes with them.
        problem: for which it packed them.
        packed: what is known of each weight beside its tensors, in the order of the module's matrices.
    """

    backend: Backend
    problem: Problem
    packed: tuple[Kept, ...]

    def __str__(self) -> str:
        return f"{self.backend.name} {self.packed} {self.problem!r}"

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers that hold the tensors of all weights, in order."""
        return tuple(buffer for _, names, _ in self.packed for _, buffer in names)

    def weights(self, tensors: Sequence[Tensor]) -> list[Packed]:
        """Return the weights, from what `buffers` names."""
        given = iter(tensors)
        return [
            Packed(layout, {name: next(given) for name, _ in names}, shape)
            for layout, names, shape in self.packed
        ]


_KNOWN: Final[dict[str, Preparation]] = {}


def remember(preparation: Preparation) -> str:
    """Return the text by which `recall` knows a preparation; layers that are alike share one."""
    text = str(preparation)
    # Another backend of the same name may compute in another way.
    while _KNOWN.setdefault(text, preparation).backend is not preparation.backend:
        text += "'"
    return text


def recall(text: str) -> Preparation:
    """Return what `remember` was given."""
    return _KNOWN[text]


__all__ = ["Preparation", "recall", "remember"]
