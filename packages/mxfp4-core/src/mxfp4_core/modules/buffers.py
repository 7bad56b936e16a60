"""The buffers of a module: canonical parts while it is loaded, a backend's tensors while it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend import calls
from mxfp4_core.backend.asking import numerics_for
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, InPlaceLayout, Packed
from mxfp4_core.errors import Mxfp4Error
from mxfp4_core.modules.logical import LogicalWeight, frozen, say
from mxfp4_core.modules.parked import Parked
from mxfp4_core.modules.refit import Kept, named


class WeightBuffers(nn.Module):
    """Holds the parts of some weights under their names, and beside or instead of them what a backend made of them.

    Attributes:
        problem: see `Mxfp4Module`, like all that follow.
        format: which parts each weight has.
        profile: name of the profile that made the bytes.
        backend: who computes.
        parked: the weights, where they are not buffers but lie somewhere else than they are computed with.
        dtype: of the activations for which the module was prepared last.
        k_first: the model holds its weights with k before n, and so sees them.
        label: name of the module in messages, once it is prepared.
    """

    matrices: ClassVar[Mapping[Matrix, str]]
    k_first: bool = False
    label: str = ""
    parked: Parked | None = None

    def __init__(
        self,
        problem: Problem,
        profile: str,
        device: torch.device | str | None,
        bias_dtype: torch.dtype,
    ):
        nn.Module.__init__(self)  # a linear is torch's Linear, too, which would make a weight of its own
        self._begin(problem, profile, device)
        for matrix, shape in self.shapes.items():
            bias = torch.empty(shape[:-1], dtype=bias_dtype, device=device) if problem.bias else None
            self.register_buffer(self._bias_name(self.matrices[matrix]), bias)

    def __setattr__(self, name: str, value: Any) -> None:
        # Behind a backend's back the buffer would change and the computation would not.
        if name in self.matrices.values() and self.__dict__.get("_buffers") is not None and self.computes:
            raise frozen(f"{self.label}.{name}" if self.label else name, f"{name} = …")
        if self.parked is not None and name in self.parked.tensors:
            self.parked.tensors[name], self._buffers[name] = value, None
            return
        super().__setattr__(name, value)

    def stored(self, name: str) -> Tensor | None:
        """Return a part of a weight by the name of its buffer, as it lies, also where it is parked."""
        if self.parked is not None and name in self.parked.tensors:
            return self.parked.tensors[name]
        return self._buffers[name]

    def _begin(self, problem: Problem, profile: str, device: torch.device | str | None) -> None:
        """Make empty canonical buffers, of a module that is one already."""
        self.problem, self.profile = problem, profile
        self.format: Format = get(problem.format)
        self.backend: Backend | None = None
        self.dtype: torch.dtype = getattr(torch, problem.dtype)
        self._packed: dict[Matrix, Kept] = {}
        for matrix, shape in self.shapes.items():
            made = self.format.empty(shape, device)
            for part, name in self.buffer_names(matrix).items():
                self._buffers[name] = None  # what the class shows under this name asks for it
                self.register_buffer(name, made[part])

    @property
    def shapes(self) -> dict[Matrix, tuple[int, ...]]:
        """Logical shape of each weight."""
        return calls.shapes(self.problem)

    def buffer_names(self, matrix: Matrix) -> dict[str, str]:
        """Return the name of the buffer of each part of one weight, by name of the part."""
        return {part.name: f"{self.matrices[matrix]}{part.suffix}" for part in self.format.parts}

    @staticmethod
    def _bias_name(name: str) -> str:
        return "bias" if name == "weight" else f"{name}_bias"

    @property
    def biases(self) -> dict[Matrix, Tensor]:
        """The bias of each weight that has one."""
        found = {matrix: self._buffers[self._bias_name(name)] for matrix, name in self.matrices.items()}
        return {matrix: bias for matrix, bias in found.items() if bias is not None}

    @property
    def named_biases(self) -> dict[str, Tensor]:
        """The biases by the name of their buffer."""
        return {self._bias_name(self.matrices[matrix]): bias for matrix, bias in self.biases.items()}

    def canonical(self, matrix: Matrix) -> MxTensor:
        """Return one weight as canonical bytes; of a packed weight it is a copy."""
        if self.backend is not None and matrix in self._packed and self._held(matrix) is None:
            packed = self._take(matrix)
            return calls.unpack(self.backend, self.problem, packed, matrix, profile=self.profile)
        parts = {part: cast(Tensor, self.stored(name)) for part, name in self.buffer_names(matrix).items()}
        if self.parked is not None:
            parts = {part: self.parked.parking.fetch(tensor) for part, tensor in parts.items()}
        return MxTensor.from_parts(self.format, parts, self.shapes[matrix], self.profile)

    @property
    def computes(self) -> bool:
        """Whether the module is prepared, so that models see its weights as they were: see `seen`."""
        return self.backend is not None

    def seen(self, matrix: Matrix) -> Tensor | None:
        """Return what the attribute of a weight gives: the buffer while it is loaded, then a `LogicalWeight`."""
        name = self.matrices[matrix]
        if not self.computes:
            return self.stored(name)
        return LogicalWeight.of(
            lambda: self.canonical(matrix),
            self.shapes[matrix],
            getattr(torch, self.problem.dtype),
            self.where,
            k_first=self.k_first,
            name=f"{self.label}.{name}" if self.label else name,
            used=self._say_widened,
        )

    @staticmethod
    def _say_widened(name: str) -> None:
        say(name)

    def apart(self, matrix: Matrix, *, fresh: bool = False) -> MxTensor:
        """Return canonical parts for one weight that share no memory with the module.

        Args:
            matrix: which weight.
            fresh: they will be written whole, so what they hold is unspecified; else they hold the weight.
        """
        shape = self.shapes[matrix]
        if fresh:
            return MxTensor.from_parts(self.format, self.format.empty(shape, self.where), shape, self.profile)
        weight = self.canonical(matrix)
        own = {each.untyped_storage().data_ptr() for each in self._buffers.values() if each is not None}
        parts = {
            name: part.clone() if part.untyped_storage().data_ptr() in own else part
            for name, part in weight.parts.items()
        }
        return MxTensor.from_parts(self.format, parts, shape, self.profile)

    def materialise(self, matrix: Matrix, device: torch.device | str) -> dict[str, Tensor]:
        """Return the canonical parts of one weight by name; those on the meta device get memory on ``device``."""
        if self.parked is not None:
            return {**self.parked.parts(self.buffer_names(matrix), self.format, self.shapes[matrix])}
        found: dict[str, Tensor] = {}
        fresh: dict[str, Tensor] = {}
        for part, name in self.buffer_names(matrix).items():
            held = self._buffers[name]
            if held is None or held.is_meta:
                fresh = fresh or self.format.empty(self.shapes[matrix], device)
                held = self._buffers[name] = fresh[part]
            found[part] = held
        return found

    def extra_repr(self) -> str:
        """Say sizes, profile and backend."""
        p = self.problem
        sizes = f"n={p.n}, k={p.k}" + (f", experts={p.experts}, top_k={p.top_k}" if p.experts else "")
        sizes += f", activation={p.activation}" if p.activation != "none" else ""
        if p.activation == "auto" and self.backend is not None:
            sizes += f" ({numerics_for(self.backend, p).activation})"
        sizes += ", parked" if self.parked is not None else ""
        layouts = "/".join(dict.fromkeys(layout for layout, _, _ in self._packed.values()))
        ready = f"{self.backend.name} ({layouts})" if self.backend else "not prepared"
        return (
            f"{sizes}, bias={p.bias}, {self.format.name} profile={self.profile or 'unknown'}, backend={ready}"
        )

    def __getstate__(self) -> dict[str, Any]:
        # torch cannot pickle the storage of its 8-bit floats, so they go as bytes.
        buffers = {name: _as_bytes(tensor) for name, tensor in self._buffers.items()}
        return {**self.__dict__, "_buffers": buffers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch has no annotation here
        for matrix in self.matrices:
            for part, name in zip(self.format.parts, self.buffer_names(matrix).values(), strict=True):
                if (held := self._buffers[name]) is not None:
                    self._buffers[name] = part.of_bytes(held)
        if self.backend is not None:
            self._prepared()

    def _prepared(self) -> None:
        """Note what every call needs, once the module has a backend."""
        self.dtype = getattr(torch, self.problem.dtype)

    def _held(self, matrix: Matrix) -> Tensor | None:
        """Return the canonical part that the weight is known by, or None where a backend holds the weight alone."""
        return self.stored(self.matrices[matrix])

    def _keep(self, matrix: Matrix, weight: MxTensor | None) -> None:
        """Put the parts of a weight into the canonical buffers, or nothing."""
        for part, name in self.buffer_names(matrix).items():
            held = None if weight is None else weight.parts[part]
            if self.parked is None:
                self._buffers[name] = held
                continue
            self._buffers[name] = None  # of a load there may be a placeholder left
            if held is not None:
                self.parked.tensors[name] = held
            else:
                self.parked.tensors.pop(name, None)

    def _pack(
        self,
        backend: Backend,
        problem: Problem,
        matrix: Matrix,
        weight: MxTensor,
        *,
        consume: bool,
        name: str = "",
    ) -> Packed:
        """Pack a weight with the bias of the module; an error says which tensor it is."""
        try:
            return calls.pack(backend, problem, weight, self.biases.get(matrix), matrix, consume=consume)
        except Mxfp4Error as error:
            own = self.matrices[matrix]
            raise named(error, f"{name}.{own}" if name else own) from error

    @staticmethod
    def _lives_on(layout: object, weight: MxTensor, packed: Packed, *, consume: bool) -> bool:
        """Return whether the canonical parts of a weight are the packed ones, so that they cost nothing."""
        kept = {tensor.data_ptr() for tensor in packed.tensors.values()}
        overwritten = consume and isinstance(layout, InPlaceLayout)
        return not overwritten and all(part.data_ptr() in kept for part in weight.parts.values())

    def _take(self, matrix: Matrix) -> Packed:
        # Every call of the module comes here: no names are made, and nothing is looked up twice.
        layout, names, shape = self._packed[matrix]
        if self.parked is not None:
            fetched: dict[str, Any] = {name: self.parked.fetch(buffer) for name, buffer in names}
            return Packed(layout, fetched, shape)
        buffers = self._buffers
        tensors: dict[str, Any] = {name: buffers[buffer] for name, buffer in names}
        return Packed(layout, tensors, shape)

    def _packed_buffers(self, matrix: Matrix) -> dict[str, Tensor]:
        return {name: cast(Tensor, self._buffers[name]) for _, name in self._packed[matrix][1]}

    def _register(self, matrix: Matrix, packed: Packed) -> None:
        names = tuple((name, f"packed_{matrix}_{name}") for name in packed.tensors)
        self._packed[matrix] = (packed.layout, names, packed.shape)
        # One object for one memory, so that who adds up buffers counts it once.
        held = {
            _place(tensor): tensor
            for tensor in self._buffers.values()
            if tensor is not None and not tensor.is_meta
        }
        for name, buffer in names:
            tensor = packed.tensors[name]
            self.register_buffer(buffer, held.get(_place(tensor), tensor), persistent=False)

    def _forget(self) -> None:
        self.backend, self._packed = None, {}
        for name in [name for name in self._buffers if name.startswith("packed_")]:
            del self._buffers[name]
            self._non_persistent_buffers_set.discard(name)

    @property
    def where(self) -> torch.device:
        """The device of the weights; of parked ones, that on which they are computed with."""
        if self.parked is not None:
            return self.parked.parking.device
        return next(buffer for buffer in self._buffers.values() if buffer is not None).device


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Return what two tensors have in common that are the same numbers in the same memory."""
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)


def _as_bytes(tensor: Tensor | None) -> Tensor | None:
    floats = tensor is not None and tensor.is_floating_point() and tensor.dtype.itemsize == 1
    return tensor.view(torch.uint8) if tensor is not None and floats else tensor


__all__ = ["WeightBuffers"]
