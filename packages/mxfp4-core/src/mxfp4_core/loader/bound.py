"""A module whose weights a session loads: canonical buffers at its first load, parts beside the old weights later."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mxfp4_core.arithmetic.formats.base import Parts
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.options import Value
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, Packed
from mxfp4_core.backend.selection import Selection
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import LoadError
from mxfp4_core.loader.report import LoadReportBuilder
from mxfp4_core.loader.storage import shares
from mxfp4_core.loader.target import QuantTarget
from mxfp4_core.modules.ask import select_for
from mxfp4_core.modules.base import Mxfp4Module
from mxfp4_core.modules.held import Mxfp4Held
from mxfp4_core.modules.prepare import alone


@dataclass(eq=False)
class Bound:
    """What a session knows of one module.

    A module without a backend is written into its own buffers, which get memory when the first piece comes. One that
    computes keeps its weights: new ones are collected beside them, and take their memory when the load is closed.

    Args:
        name: of the module, for messages.
        module: the module.
        device: where buffers on the meta device get memory.
        backend: who will compute, for a module that is not prepared; None: the adapter prepares it.
        dtype: of the activations.
        options: for the backend.
        prepares: a module that keeps its own code is made ready when it is loaded.
    """

    name: str
    module: Mxfp4Module
    device: torch.device
    backend: Backend | None
    dtype: torch.dtype
    options: Mapping[str, Value] | None = None
    prepares: bool = True
    targets: dict[Matrix, QuantTarget] = field(default_factory=dict[Matrix, QuantTarget])
    subset: bool = False
    _open: dict[Matrix, Parts] = field(default_factory=dict[Matrix, Parts])
    _beside: dict[Matrix, MxTensor] = field(default_factory=dict[Matrix, MxTensor])
    _biases: dict[Matrix, Tensor] = field(default_factory=dict[Matrix, Tensor])
    _late: dict[Matrix, Tensor] = field(default_factory=dict[Matrix, Tensor])
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def open(self, matrix: Matrix) -> Parts:
        """Return the parts that a load writes."""
        with self._lock:
            if matrix not in self._open:
                if not self.module.computes:
                    self._open[matrix] = self.module.materialise(matrix, self.device)
                else:
                    self._beside[matrix] = self.module.apart(matrix, fresh=not self.subset)
                    self._open[matrix] = self._beside[matrix].parts
            return self._open[matrix]

    def holds(self, matrix: Matrix, param: torch.Tensor) -> bool:
        """Return whether a parameter of the engine has the memory of a weight, or will get what is loaded."""
        own = self.module._buffers[self.module.matrices[matrix]]
        opened = self._open.get(matrix)
        tensors = [own, *([] if opened is None else opened.values())]
        return any(shares(param, tensor) for tensor in tensors if tensor is not None)

    def begin(self, *, subset: bool) -> None:
        """Forget what a load that was not closed has collected, and remember what the module computes with."""
        self.subset = subset
        if self.module.computes:
            self._restore_biases()
            for target in self.targets.values():
                target.ledger.keep_old()
            self._biases = {matrix: bias.clone() for matrix, bias in self.module.biases.items()}
        self._open, self._beside, self._late = {}, {}, {}

    def hold_back(self) -> None:
        """Let a module that computes do so with its old biases while its load is not complete."""
        for matrix, bias in self._changed().items():
            self._late[matrix] = bias.clone()
        self._restore_biases()

    def check(self) -> None:
        """Check that nothing of the module is left on the meta device; where the adapter prepares it, let go of it.

        Whoever prepares a module releases its canonical bytes one after the other, which frees them if nobody else
        holds them.

        Raises:
            LoadError: something is; it names the buffer.
        """
        for key, buffer in self.module.named_buffers(recurse=False):
            if buffer.is_meta and self.module.stored(key) is buffer:
                raise LoadError(
                    f"{self.name}.{key}".lstrip(".") + " was not loaded",
                    seen="a tensor on the meta device",
                    rule="a module is loaded when all of it has memory",
                    fix="load it with the engine's own loader before the session is closed",
                )
        if self.backend is None and not self.module.computes:
            self._open = {}

    def derive(self) -> dict[Matrix, Packed]:
        """Return the device layout of what was collected beside the weights of a module that computes.

        Raises:
            FormatError, LoadError: as `Mxfp4Module.repack`.
        """
        if not self.module.computes:
            return {}
        for matrix in self._late.keys() - self._changed().keys():
            self.module.biases[matrix].copy_(self._late[matrix])
        self._open = {}
        packed: dict[Matrix, Packed] = {}
        changed = self._changed()
        for matrix in self.module.matrices:
            weight = self._beside.pop(matrix, None)
            if weight is None and matrix in changed:
                weight = self.module.apart(matrix)
            if weight is not None:
                packed |= self.module.repack({matrix: weight}, name=self.name)
        return packed

    def finish(self, packed: dict[Matrix, Packed], *, consume: bool) -> None:
        """Make what was loaded the module's own: prepare it, or write what `derive` gave into its memory.

        Args:
            packed: from `derive`.
            consume: no other module holds the canonical bytes.

        Raises:
            BackendError, FormatError: as `Mxfp4Module.prepare`.
        """
        self.module.profile = self.module.profile or self._profile()
        if self.module.computes:
            self.module.commit(packed)
        elif isinstance(self.module, Mxfp4Held):
            if self.prepares:
                self.module.prepare(None, dtype=self.dtype, name=self.name)
        elif self.backend is not None:
            self.module.prepare(
                self.backend, dtype=self.dtype, consume=consume, options=self.options, name=self.name
            )
        self._open, self._beside, self._late = {}, {}, {}
        self._biases = {matrix: bias.clone() for matrix, bias in self.module.biases.items()}

    def _profile(self) -> str:
        used = {target.arithmetic.profile for target in self.targets.values() if not target.exact}
        return used.pop() if len(used) == 1 else ""

    def _changed(self) -> dict[Matrix, Tensor]:
        """Return the biases that an engine wrote since the load began."""
        now = self.module.biases
        return {
            matrix: now[matrix]
            for matrix, old in self._biases.items()
            if matrix in now and not torch.equal(old, now[matrix])
        }

    def _restore_biases(self) -> None:
        for matrix, bias in self._changed().items():
            bias.copy_(self._biases[matrix])


@dataclass(frozen=True)
class InModule:
    """The memory of one weight of a bound module."""

    bound: Bound
    matrix: Matrix

    @property
    def device(self) -> torch.device:
        """Where the weight is, or will be."""
        return self.bound.device

    def open(self) -> Parts:
        """Return the parts to write; see `Bound.open`."""
        return self.bound.open(self.matrix)

    def holds(self, param: torch.Tensor) -> bool:
        """Return whether the parameter is the weight of the module, or what is collected beside it."""
        return self.bound.holds(self.matrix, param)


def bind(
    model: nn.Module,
    config: Mxfp4Config,
    prefix: str,
    dtype: torch.dtype,
    device: torch.device | str | None,
    backend: Backend | None,
    *,
    prepare: bool,
) -> Iterator[Bound]:
    """Yield the MXFP4 modules of a model, each with the backend that will compute; see `LoadSession.bind`.

    Raises:
        BackendError: there is none for one of them.
    """
    selections: dict[Problem, Selection] = {}
    for path, module in model.named_modules():
        if not isinstance(module, Mxfp4Module):
            continue
        name = ".".join(filter(None, (prefix, path)))
        where = torch.device(device) if device is not None else module.where
        where = torch.device("cpu") if where.type == "meta" else where
        if module.computes or not prepare or backend is not None or isinstance(module, Mxfp4Held):
            yield Bound(name, module, where, backend if prepare else None, dtype, prepares=prepare)
            continue
        words = str(dtype).removeprefix("torch.")
        problem = replace(module.problem, dtype=words, device=Device.of(str(where)))
        selection = select_for(problem, config, selections)
        yield Bound(name, module, where, selection.backend, dtype, selection.problem.options)


@contextmanager
def holding_back(bounds: Sequence[Bound]) -> Iterator[None]:
    """While a load proves to be incomplete, let what computes do so with its old biases."""
    try:
        yield
    except LoadError:
        for bound in bounds:
            bound.hold_back()
        raise


def settle(bounds: Sequence[Bound], report: LoadReportBuilder) -> None:
    """Make what a complete load brought the modules' own, all of it or nothing of what is loaded again.

    Raises:
        LoadError, FormatError, BackendError: a module cannot take it; those that computed do so with their old weights.
    """
    if not bounds:
        return
    sole = alone({str(number): bound.module for number, bound in enumerate(bounds)})
    with report.timing("preparing"):
        try:
            packed = [bound.derive() for bound in bounds]
        except BaseException:
            for bound in bounds:
                bound.begin(subset=bound.subset)
            raise
        for number, (bound, each) in enumerate(zip(bounds, packed, strict=True)):
            bound.finish(each, consume=str(number) in sole)
    names = {bound.module.backend.name: None for bound in bounds if bound.module.backend is not None}
    report.backend = report.backend or ", ".join(names)


__all__ = ["Bound", "InModule", "bind", "holding_back", "settle"]
