"""A module with canonical bytes while it is loaded, and a backend's layout while it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor

from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend import calls
from mxfp4_core.backend.answers import No
from mxfp4_core.backend.asking import verdict
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.options import Value
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, Packed
from mxfp4_core.errors import BackendError, FormatError
from mxfp4_core.modules.changed import ChangeableBuffers
from mxfp4_core.modules.refit import Snapshot, alike, check_same, check_state, write


class _RefusedError(Exception):
    """A ``state_dict`` that torch will refuse when it has looked at all modules."""


class Mxfp4Module(ChangeableBuffers):
    """What linear and experts share: canonical buffers on one side, packed buffers on the other.

    Attributes:
        problem: the question this module asks a backend; its device and dtype are those of the last
            ``prepare``.
        format: which parts each weight has; the buffer of a part is called after the weight, with the part's suffix.
        profile: name of the profile that made the bytes, empty if unknown.
        backend: who computes, None before ``prepare``.
    """

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
        self,
        backend: Backend,
        *,
        dtype: torch.dtype = torch.bfloat16,
        consume: bool = False,
        options: Mapping[str, Value] | None = None,
        name: str = "",
    ) -> Self:
        """Derive the backend's layout on the device where the weights are.

        Canonical bytes that are not part of the layout are released, one weight after the other. Prepared
        before, the module packs into the same device memory where the sizes agree. After an error the module is
        what it was.

        Args:
            backend: for example ``select_backend(...).backend``.
            dtype: of the activations.
            consume: nobody else uses the canonical bytes, so the layout may be made in their memory; else there
                is a moment with one weight in both.
            options: for the backend, ``Selection.problem.options``; those of the last ``prepare`` if None.
            name: name of the module in messages.

        Raises:
            BackendError: the backend does not take this module.
            FormatError: the device cannot represent a scale byte of the weight.
        """
        problem = self.question(dtype)
        problem = problem if options is None else replace(problem, options=options)
        answer = verdict(backend, problem)
        if isinstance(answer, No):
            raise BackendError(
                f"preparing {name or type(self).__name__}({self.extra_repr()}) for backend {backend.name!r}",
                seen=answer.reason,
                rule=f"the backend must accept {problem}",
                fix=answer.fix,
            )
        if self.parked is not None:
            return self._prepare_parked(self.parked, backend, problem, name)
        again = self.backend is not None
        # What a layout overwrites cannot be had back while another one computes with it.
        consume = consume and not again
        made: dict[Matrix, Packed] = {}
        shared: dict[Matrix, MxTensor | None] = {}
        try:
            for matrix in self.matrices:
                weight = self.canonical(matrix)
                made[matrix] = self._pack(backend, problem, matrix, weight, consume=consume, name=name)
                layout = backend.layout(problem, matrix)
                lives_on = self._lives_on(layout, weight, made[matrix], consume=consume)
                shared[matrix] = weight if lives_on else None
                del weight
                if not again:
                    self._keep(matrix, shared[matrix])
        except BaseException:
            for matrix, packed in made.items():
                if not again and self._held(matrix) is None:
                    self._keep(matrix, calls.unpack(backend, problem, packed, matrix, profile=self.profile))
            raise
        old = dict(self._buffers)
        self._forget()
        for matrix, packed in made.items():
            self._keep(matrix, shared[matrix])
            self._register(matrix, packed)
            for buffer, new in self._packed_buffers(matrix).items():
                before = old.get(buffer)
                if before is not None and alike(before, new):
                    self._buffers[buffer] = write(before, new)
        self.problem, self.backend, self.label = problem, backend, name or self.label
        self._prepared()
        return self

    def repack(self, weights: Mapping[Matrix, MxTensor], *, name: str = "") -> dict[Matrix, Packed]:
        """Derive the layout of new weights beside the one in use, which stays as it is; then `commit` it.

        Args:
            weights: canonical, in memory of their own, which the layout may overwrite.
            name: name of the module in messages.

        Raises:
            BackendError: the module is not prepared.
            FormatError: the device cannot represent a scale byte of a weight.
            LoadError: the layout of the new weight does not fit the memory of the old one.
        """
        self._check_free("new weights", name)
        backend, packed = self._ready(), dict[Matrix, Packed]()
        for matrix, weight in weights.items():
            new = self._pack(backend, self.problem, matrix, weight, consume=True, name=name)
            check_same(f"{name}.{self.matrices[matrix]}".lstrip("."), self._take(matrix), new)
            packed[matrix] = new
        return packed

    def commit(self, packed: Mapping[Matrix, Packed]) -> None:
        """Copy what `repack` gave into the memory that the backend computes with; every address stays."""
        for matrix, new in packed.items():
            for key, tensor in self._take(matrix).tensors.items():
                write(tensor, new.tensors[key])

    def question(self, dtype: torch.dtype) -> Problem:
        """Return what to ask a backend: this problem for ``dtype``, on the device where the weights are."""
        return replace(self.problem, dtype=str(dtype).removeprefix("torch."), device=Device.of(self.where))

    @contextlib.contextmanager
    def unprepared(self, fresh: Collection[Matrix] = ()) -> Iterator[Self]:
        """Give canonical buffers back for the length of a ``with``, for example to load into them again.

        They are copies. Afterwards the module is prepared as before, in the same device memory. Where the ``with``
        ends in an error, or the new weights cannot be prepared, it computes with its old weights, in the same memory.

        Args:
            fresh: weights that will be written whole: their buffers hold unspecified bytes.

        Raises:
            FormatError, LoadError: as `repack`.
        """
        backend = self.backend
        if backend is None:
            yield self
            return
        self._check_free("new weights")
        was = self._snapshot(backend)
        weights = {matrix: self.apart(matrix, fresh=matrix in fresh) for matrix in self.matrices}
        self._forget()
        for matrix, weight in weights.items():
            self._keep(matrix, weight)
        del weights
        try:
            yield self
            if self.backend is None and self.where != was.device:
                self.prepare(backend, dtype=getattr(torch, was.problem.dtype))
            if self.backend is not None:
                return
            self._settle_into(was)
        except BaseException:
            self._revert(was)
            for name, values in was.biases.items():
                cast(Tensor, self._buffers[name]).copy_(values)
            raise

    def _settle_into(self, was: Snapshot) -> None:
        """Put the canonical weights and the biases that are there now into the memory of a snapshot."""
        packed = {
            matrix: self._pack(was.backend, was.problem, matrix, self.canonical(matrix), consume=False)
            for matrix in self.matrices
        }
        new, profile = dict(self._buffers), self.profile
        self._revert(was)
        for matrix, each in packed.items():
            check_same(self.matrices[matrix], self._take(matrix), each)
        self.profile = profile
        self.commit(packed)
        for name in was.biases:
            write(cast(Tensor, self._buffers[name]), cast(Tensor, new[name]))

    def _snapshot(self, backend: Backend) -> Snapshot:
        return Snapshot(
            backend=backend,
            problem=self.problem,
            profile=self.profile,
            packed=dict(self._packed),
            buffers=dict(self._buffers),
            volatile=frozenset(self._non_persistent_buffers_set),
            biases={name: bias.clone() for name, bias in self.named_biases.items()},
            device=self.where,
        )

    def _revert(self, was: Snapshot) -> None:
        """Take the buffers of a snapshot again, with what they hold."""
        self._buffers.clear()
        self._buffers.update(was.buffers)
        self._non_persistent_buffers_set = set(was.volatile)
        self.problem, self.backend, self.profile = was.problem, was.backend, was.profile
        self._packed = dict(was.packed)
        self._prepared()

    def _ready(self) -> Backend:
        if self.backend is None:
            raise BackendError(
                f"{type(self).__name__}({self.extra_repr()})",
                seen="no backend",
                rule="a module is prepared before it computes, and again after it moved to a device or dtype",
                fix="call mxfp4_core.modules.prepare_model(model), or prepare(backend) on the module",
            )
        return self.backend

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.backend is not None and self.parked is None:
            probe = torch.empty(0, dtype=getattr(torch, self.problem.dtype), device=self.where)
            moved = fn(probe)
            if (moved.device, moved.dtype) != (probe.device, probe.dtype):
                for matrix in self.matrices:
                    if self._held(matrix) is None:
                        self._keep(matrix, self.canonical(matrix))
                self._forget()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for matrix in self.matrices:
            if self.parked is None and self._held(matrix) is None:
                parts = self.canonical(matrix).parts
                for part, key in self.buffer_names(matrix).items():
                    destination[prefix + key] = parts[part]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        fresh: set[Matrix] = set()
        for matrix, shape in self.shapes.items():
            names = {part: f"{prefix}{name}" for part, name in self.buffer_names(matrix).items()}
            if check_state(state_dict, names, self.format, shape):
                fresh.add(matrix)
        prepared = self.backend is not None
        with contextlib.suppress(_RefusedError), self.unprepared(fresh):
            before = len(error_msgs)
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
            # A weight that is missing altogether stays, and torch reports it or not: it knows whether that is an error.
            if prepared and len(error_msgs) > before:
                raise _RefusedError


__all__ = ["Mxfp4Module"]
