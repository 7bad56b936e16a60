"""A module with canonical bytes while it is loaded, and a backend's layout while it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend import calls
from mxfp4_core.backend.answers import No
from mxfp4_core.backend.asking import verdict
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, InPlaceLayout, Packed
from mxfp4_core.errors import BackendError, FormatError


class Mxfp4Module(nn.Module):
    """What linear and experts share: canonical buffers on one side, packed buffers on the other.

    Attributes:
        problem: the question this module asks a backend; its device and dtype are those of the last
            ``prepare``.
        format: which parts each weight has; the buffer of a part is called after the weight, with the part's suffix.
        profile: name of the profile that made the bytes, empty if unknown.
        backend: who computes, None before ``prepare``.
    """

    matrices: ClassVar[Mapping[Matrix, str]]

    def __init__(
        self,
        problem: Problem,
        profile: str,
        device: torch.device | str | None,
        bias_dtype: torch.dtype,
        format: str = "mxfp4",
    ):
        super().__init__()
        self.problem, self.profile = problem, profile
        self.format: Format = get(format)
        self.backend: Backend | None = None
        self._packed: dict[Matrix, tuple[str, tuple[str, ...], tuple[int, ...]]] = {}
        for matrix, shape in calls.shapes(problem).items():
            made = self.format.empty(shape, device)
            for part, key in self.buffer_names(matrix).items():
                self.register_buffer(key, made[part])
            bias = torch.empty(shape[:-1], dtype=bias_dtype, device=device) if problem.bias else None
            self.register_buffer(self._bias_name(self.matrices[matrix]), bias)

    def buffer_names(self, matrix: Matrix) -> dict[str, str]:
        """Return the name of the buffer of each part of one weight, by name of the part."""
        return {part.name: f"{self.matrices[matrix]}{part.suffix}" for part in self.format.parts}

    @staticmethod
    def _bias_name(name: str) -> str:
        return "bias" if name == "weight" else f"{name}_bias"

    def canonical(self, matrix: Matrix) -> MxTensor:
        """Return one weight as canonical bytes; of a packed weight it is a copy."""
        names = self.buffer_names(matrix)
        if matrix in self._packed and self._held(matrix) is None:
            return calls.unpack(self._ready(), self.problem, self._take(matrix), matrix, profile=self.profile)
        parts = {part: cast(Tensor, self._buffers[key]) for part, key in names.items()}
        return MxTensor.from_parts(self.format, parts, calls.shapes(self.problem)[matrix], self.profile)

    def _held(self, matrix: Matrix) -> Tensor | None:
        """Return the canonical part that the weight is known by, or None where a backend holds the weight alone."""
        return self._buffers[self.matrices[matrix]]

    def _keep(self, matrix: Matrix, weight: MxTensor | None) -> None:
        """Put the parts of a weight into the canonical buffers, or nothing."""
        for part, key in self.buffer_names(matrix).items():
            self._buffers[key] = None if weight is None else weight.parts[part]

    def fill(self, matrix: Matrix, weight: MxTensor, bias: Tensor | None = None) -> None:
        """Replace the canonical buffers of one weight, without a copy.

        Raises:
            BackendError: the module is prepared; a backend would go on with the weights that it has.
            FormatError: the weight has another format.
        """
        if self.backend is not None:
            raise BackendError(
                f"filling {type(self).__name__}({self.extra_repr()})",
                seen=f"a module that is prepared for {self.backend.name!r}",
                rule="weights are replaced while the module is not prepared",
                fix="fill it inside `with module.unprepared():`",
            )
        if weight.format is not self.format:
            raise FormatError(
                f"filling {type(self).__name__}({self.extra_repr()})",
                seen=f"a weight of the format {weight.format.name}",
                rule=f"the module holds {self.format.name}",
                fix="make the module with the format of its weights",
            )
        self.profile = weight.profile or self.profile
        self._keep(matrix, weight)
        if bias is not None:
            self._buffers[self._bias_name(self.matrices[matrix])] = bias.detach()

    def prepare(
        self, backend: Backend, *, dtype: torch.dtype = torch.bfloat16, consume: bool = False
    ) -> Self:
        """Derive the backend's layout on the device where the weights are.

        Canonical bytes that are not part of the layout are released, one weight after the other. Prepared
        before, the module packs into the same device memory where the sizes agree.

        Args:
            backend: for example ``select_backend(...).backend``.
            dtype: of the activations.
            consume: nobody else uses the canonical bytes, so the layout may be made in their memory; else there
                is a moment with one weight in both.

        Raises:
            BackendError: the backend does not take this module.
            FormatError: the device cannot represent a scale byte of the weight.
        """
        problem = self.question(dtype)
        answer = verdict(backend, problem)
        if isinstance(answer, No):
            raise BackendError(
                f"preparing {type(self).__name__}({self.extra_repr()}) for backend {backend.name!r}",
                seen=answer.reason,
                rule=f"the backend must accept {problem}",
                fix=answer.fix,
            )
        self._restore()
        old = {name: tensor for name, tensor in self._buffers.items() if name.startswith("packed_")}
        self._forget()
        self.problem, self.backend = problem, backend
        for matrix in self.matrices:
            self._pack(matrix, cast("dict[str, Tensor]", old), consume)
        return self

    def question(self, dtype: torch.dtype) -> Problem:
        """Return what to ask a backend: this problem for ``dtype``, on the device where the weights are."""
        return replace(self.problem, dtype=str(dtype).removeprefix("torch."), device=Device.of(self._where()))

    @contextlib.contextmanager
    def unprepared(self) -> Iterator[Self]:
        """Give the canonical buffers back for the length of a ``with``, for example to load into them again.

        Afterwards the module is prepared as before, in the same device memory.
        """
        backend = self.backend
        self._restore()
        self.backend = None
        try:
            yield self
        finally:
            if backend is not None:
                self.prepare(backend, dtype=getattr(torch, self.problem.dtype))

    def extra_repr(self) -> str:
        """Say sizes, profile and backend."""
        p = self.problem
        sizes = f"n={p.n}, k={p.k}" + (f", experts={p.experts}, top_k={p.top_k}" if p.experts else "")
        sizes += f", activation={p.activation}" if p.activation != "none" else ""
        layouts = "/".join(dict.fromkeys(layout for layout, _, _ in self._packed.values()))
        ready = f"{self.backend.name} ({layouts})" if self.backend else "not prepared"
        return (
            f"{sizes}, bias={p.bias}, {self.format.name} profile={self.profile or 'unknown'}, backend={ready}"
        )

    def _ready(self) -> Backend:
        if self.backend is None:
            raise BackendError(
                f"{type(self).__name__}({self.extra_repr()})",
                seen="no backend",
                rule="a module is prepared before it computes, and again after it moved to a device or dtype",
                fix="call mxfp4_core.modules.prepare_model(model), or prepare(backend) on the module",
            )
        return self.backend

    def _take(self, matrix: Matrix) -> Packed:
        layout, names, shape = self._packed[matrix]
        tensors = {name: cast(Tensor, self._buffers[f"packed_{matrix}_{name}"]) for name in names}
        return Packed(layout, tensors, shape)

    def _pack(self, matrix: Matrix, old: Mapping[str, Tensor], consume: bool) -> None:
        bias = self._buffers[self._bias_name(self.matrices[matrix])]
        weight = self.canonical(matrix)
        packed = calls.pack(self._ready(), self.problem, weight, bias, matrix, consume=consume)
        for key, tensor in packed.tensors.items():
            before = old.get(f"packed_{matrix}_{key}")
            same = before is not None and (before.shape, before.dtype, before.device, before.stride()) == (
                (tensor.shape, tensor.dtype, tensor.device, tensor.stride())
            )
            if before is not None and same and before.data_ptr() != tensor.data_ptr():
                tensor = before.copy_(tensor)
            self.register_buffer(f"packed_{matrix}_{key}", tensor, persistent=False)
        self._packed[matrix] = (packed.layout, tuple(packed.tensors), packed.shape)
        kept = {tensor.data_ptr() for tensor in packed.tensors.values()}
        overwritten = consume and isinstance(self._ready().layout(self.problem, matrix), InPlaceLayout)
        if overwritten or not {tensor.data_ptr() for tensor in weight.parts.values()} <= kept:
            self._keep(matrix, None)

    def _restore(self) -> None:
        for matrix in self.matrices:
            if self._held(matrix) is None:
                self._keep(matrix, self.canonical(matrix))

    def _forget(self) -> None:
        self.backend, self._packed = None, {}
        for name in [name for name in self._buffers if name.startswith("packed_")]:
            del self._buffers[name]
            self._non_persistent_buffers_set.discard(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.backend is not None:
            probe = torch.empty(0, dtype=getattr(torch, self.problem.dtype), device=self._where())
            moved = fn(probe)
            if (moved.device, moved.dtype) != (probe.device, probe.dtype):
                self._restore()
                self._forget()
        # torch annotates everything but this method.
        return cast("Self", super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def _where(self) -> torch.device:
        return next(buffer for buffer in self._buffers.values() if buffer is not None).device

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for matrix in self.matrices:
            if self._held(matrix) is None:
                parts = self.canonical(matrix).parts
                for part, key in self.buffer_names(matrix).items():
                    destination[prefix + key] = parts[part]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self.unprepared():
            super()._load_from_state_dict(*args, **kwargs)


__all__ = ["Mxfp4Module"]
