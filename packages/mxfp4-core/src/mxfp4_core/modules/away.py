"""Modules whose weights may be parked: how they get there, and what cannot be done with them then, or at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn, Self, cast

import torch
from torch import Tensor

from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, InPlaceLayout
from mxfp4_core.errors import ConfigError, Mxfp4Error
from mxfp4_core.modules.buffers import WeightBuffers
from mxfp4_core.modules.logical import LogicalWeight
from mxfp4_core.modules.parked import Parked, Parking, parked_for_good


def _refuse_values(name: str) -> NoReturn:
    raise ConfigError(
        f"the values of {name} cannot be read",
        seen="a weight that processes share",
        rule="its shape, dtype and device are those of the whole; its values lie whole in no process",
        fix="load the model whole, or name the module in ignore: then the weight is a DTensor",
    )


class ParkableBuffers(WeightBuffers):
    """Buffers of weights that may lie somewhere else than they are computed with; see `WeightBuffers`.

    Attributes:
        refused: attributes that a library sets on a module for what cannot be done with this one, each with what makes
            the error that says so.
        whole: logical shape of each weight of which a part alone lies here, since processes share it. The code of a
            model sees the shape of the whole, as of a ``DTensor``; its values are an error.
    """

    refused: Mapping[str, Callable[[], Mxfp4Error]] = MappingProxyType({})
    whole: Mapping[Matrix, tuple[int, ...]] = MappingProxyType({})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.refused:
            raise self.refused[name]()
        super().__setattr__(name, value)

    def seen(self, matrix: Matrix) -> Tensor | None:
        """Return what the attribute of a weight gives: the buffer while it is loaded, then a `LogicalWeight`."""
        if not self.computes or matrix not in self.whole:
            return super().seen(matrix)
        name = self.matrices[matrix]
        return LogicalWeight.of(
            partial(self.canonical, matrix),
            self.whole[matrix],
            getattr(torch, self.problem.dtype),
            self.where,
            k_first=self.k_first,
            name=f"{self.label}.{name}" if self.label else name,
            used=_refuse_values,
        )

    def park(self, parking: Parking) -> None:
        """Have the weights lie somewhere else than they are computed with, from their first byte on.

        They are no buffers then. What a loader assigns under their names lies where it says, and a backend's layout
        where ``parking`` says.

        Raises:
            BackendError: the module is prepared.
        """
        if self.computes:
            raise parked_for_good(type(self).__name__, "parking a module that computes")
        self.parked = Parked(parking)
        for matrix, shape in self.shapes.items():
            names = self.buffer_names(matrix)
            held = {name: self._buffers[name] for name in names.values()}
            parts = self.parked.parts(names, self.format, shape)
            for part, name in names.items():
                if (old := held[name]) is not None and not old.is_meta:
                    parts[part].copy_(old)
                    self._buffers[name] = None

    def _check_free(self, seen: str, name: str = "") -> None:
        """Check that the weights are not parked, before somebody changes them.

        Raises:
            BackendError: they are.
        """
        if self.parked is not None:
            raise parked_for_good(name or self.label or type(self).__name__, seen)

    def _drop_placeholders(self) -> None:
        """Let go what stood for parked weights while they were loaded."""
        for name in self._buffers.keys() & (self.parked.tensors.keys() if self.parked is not None else set()):
            self._buffers[name] = None

    def _prepare_parked(self, parked: Parked, backend: Backend, problem: Problem, name: str) -> Self:
        """Derive the layout of one weight after the other on the device, and park it."""
        if self.computes:
            raise parked_for_good(name or type(self).__name__, "a module that is prepared already")
        for matrix in self.matrices:
            weight = self.canonical(matrix)
            given = {own: weight.parts[part] for part, own in self.buffer_names(matrix).items()}
            packed = self._pack(backend, problem, matrix, weight, consume=True, name=name)
            layout = backend.layout(problem, matrix)
            lives_on = self._lives_on(layout, weight, packed, consume=True)
            kept = parked.keep(given, packed.tensors, changed=isinstance(layout, InPlaceLayout))
            names = tuple((key, f"packed_{matrix}_{key}") for key in kept)
            self._drop_placeholders()
            self._packed[matrix] = (packed.layout, names, packed.shape)
            if not lives_on:
                self._keep(matrix, None)
            parked.tensors |= {buffer: kept[key] for key, buffer in names}
        self.problem, self.backend, self.label = problem, backend, name or self.label
        self._prepared()
        return self

    def _lying(self, matrix: Matrix) -> dict[str, Tensor]:
        """Return the canonical parts of a parked weight in memory of the host: as they lie, or a copy."""
        names = self.buffer_names(matrix)
        lying = {part: tensor for part, name in names.items() if (tensor := self.stored(name)) is not None}
        return lying or {part: tensor.cpu() for part, tensor in self.canonical(matrix).parts.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.parked is not None:
            here = torch.empty(0, dtype=self.dtype, device=self.where)
            there = fn(here)
            if (there.device, there.dtype) != (here.device, here.dtype):
                self._check_free(f"a move to {there.device} and {there.dtype}")
        # torch annotates everything but this method.
        return cast("Self", super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Between a load and the first call somebody may look at all tensors of a model, who would keep them in memory.
        for matrix in self.matrices if self.parked is not None and self.computes else ():
            for part, tensor in self._lying(matrix).items():
                destination[prefix + self.buffer_names(matrix)[part]] = tensor


__all__ = ["ParkableBuffers"]
