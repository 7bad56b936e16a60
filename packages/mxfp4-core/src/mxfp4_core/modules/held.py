"""Modules that keep their own code, and hold the weights that it computes with as MXFP4.

A stack of experts may be called in a way of its own, or do more than a backend computes, and a linear may be derived
and do more than multiply. Their code goes on as it is; what it reads under the name of a weight is a `LogicalWeight`,
which is widened on use, one expert at a time where the code selects one. No backend computes with such a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend.device import Device, cpu
from mxfp4_core.backend.options import Value
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, Packed
from mxfp4_core.modules.base import Mxfp4Module
from mxfp4_core.modules.experts import plain_forward
from mxfp4_core.modules.logical import Logical
from mxfp4_core.modules.refit import write


class Mxfp4Held(Mxfp4Module):
    """Base of such modules; each is of a class derived from this one and from the model's own.

    Its weights have the names that they have in the model, also as ``Matrix``.
    """

    _shapes: dict[Matrix, tuple[int, ...]]
    _own_forward: Callable[..., Any]

    @classmethod
    def around(
        cls,
        module: nn.Module,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        k_first: bool = False,
        profile: str = "",
        format: str = "mxfp4",
        device: torch.device | str | None = None,
    ) -> Mxfp4Held:
        """Return a module that does what ``module`` does, with empty MXFP4 weights; it shares all else with it.

        Args:
            module: the model's own. It is not changed.
            shapes: logical shape of each weight that becomes MXFP4, k last, by name.
            k_first: the module holds them with k before n.
            profile: name of the profile of the bytes that will come.
            format: name of the format of the weights.
            device: where the buffers are.
        """
        held: Mxfp4Held = object.__new__(_class_of(type(module), tuple(shapes)))
        state = dict(module.__dict__)
        for kept in ("_parameters", "_buffers", "_modules"):
            state[kept] = dict(state[kept])
        state["_non_persistent_buffers_set"] = set(state["_non_persistent_buffers_set"])
        for name in shapes:
            del state["_parameters"][name]
        held.__dict__.update(state)
        held._shapes, held.k_first = (
            {cast(Matrix, name): tuple(shape) for name, shape in shapes.items()},
            k_first,
        )
        *_, n, k = next(iter(shapes.values()))
        held._begin(Problem(op="quantize", n=n, k=k, format=format, device=cpu()), profile, device)
        return held

    @property
    def shapes(self) -> dict[Matrix, tuple[int, ...]]:
        """Logical shape of each weight, k last."""
        return dict(self._shapes)

    @property
    def computes(self) -> bool:
        """Whether the module is prepared."""
        return bool(self.__dict__.get("_ready_to_run"))

    def prepare(
        self,
        backend: Backend | None,
        *,
        dtype: torch.dtype = torch.bfloat16,
        consume: bool = False,
        options: Mapping[str, Value] | None = None,
        name: str = "",
    ) -> Self:
        """Let the code of the model see its weights in ``dtype``; there is no layout to derive and no backend."""
        if self.computes:
            self._check_free("a module that is prepared already", name)
        self.problem, self.dtype, self.label = self.question(dtype), dtype, name or self.label
        self._drop_placeholders()
        self.__dict__["_ready_to_run"] = True
        return self

    def fill(self, matrix: Matrix, weight: MxTensor, bias: Tensor | None = None) -> None:
        """Replace the buffers of one weight, without a copy; biases are parameters, as they were."""
        super().fill(matrix, weight)

    @property
    def biases(self) -> dict[Matrix, Tensor]:
        """None: what is beside the weights are parameters of the module, as they were."""
        return {}

    @property
    def named_biases(self) -> dict[str, Tensor]:
        """What the module holds beside its weights, by name."""
        parts = {name for matrix in self.matrices for name in self.buffer_names(matrix).values()}
        own = {name: each for name, each in self._buffers.items() if name not in parts}
        kept = {name: each for name, each in own.items() if name not in self._non_persistent_buffers_set}
        found = {**self._parameters, **kept}
        return {name: each for name, each in found.items() if each is not None}

    def repack(self, weights: Mapping[Matrix, MxTensor], *, name: str = "") -> dict[Matrix, Packed]:
        """Return new weights as `commit` takes them."""
        self._check_free("new weights", name)
        return {
            matrix: Packed("canonical", dict(weight.parts), tuple(weight.shape))
            for matrix, weight in weights.items()
        }

    def commit(self, packed: Mapping[Matrix, Packed]) -> None:
        """Copy new weights into the memory of the old ones."""
        for matrix, new in packed.items():
            for part, name in self.buffer_names(matrix).items():
                write(cast(Tensor, self._buffers[name]), new.tensors[part])

    def question(self, dtype: torch.dtype) -> Problem:
        """Return a description of the weights for messages; no backend is asked about them."""
        words = str(dtype).removeprefix("torch.")
        return replace(self.problem, dtype=words, device=Device.of(self.where))

    @staticmethod
    def _say_widened(name: str) -> None:
        """Say nothing: who made the module said it for all of them."""

    def extra_repr(self) -> str:
        """Say sizes and profile."""
        sizes = ", ".join(f"{name} {list(shape)}" for name, shape in self.shapes.items())
        return f"{sizes}, {self.format.name} profile={self.profile or 'unknown'}, by its own code"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute as the model's own module does."""
        return type(self)._own_forward(self, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made here and has no name that pickle could look up.
        _, own = type(self).__bases__
        return _blank, (own, tuple(map(str, self.shapes))), self.__getstate__()


_MADE: dict[tuple[type[nn.Module], tuple[str, ...]], type[Mxfp4Held]] = {}


def _class_of(own: type[nn.Module], names: tuple[str, ...]) -> type[Mxfp4Held]:
    """Return the class for a module and its weights, the same one each time."""
    if (own, names) in _MADE:
        return _MADE[own, names]
    body: dict[str, Any] = {name: Logical(name) for name in names}
    body["matrices"] = {name: name for name in names}
    body["__module__"], body["__doc__"] = own.__module__, own.__doc__
    body["_own_forward"] = plain_forward(own)
    made = cast("type[Mxfp4Held]", type(f"Mxfp4{own.__name__}", (Mxfp4Held, own), body))
    return _MADE.setdefault((own, names), made)


def _blank(own: type[nn.Module], names: tuple[str, ...]) -> Mxfp4Held:
    made: Mxfp4Held = object.__new__(_class_of(own, names))
    return made


__all__ = ["Mxfp4Held"]
