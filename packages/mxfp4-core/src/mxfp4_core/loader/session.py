"""One model load: targets, wrapped loaders, and the check at the end that nothing was forgotten."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from mxfp4_core.arithmetic.formats.base import Format, Parts
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.backend.protocol import Backend
from mxfp4_core.backend.quantizers import DeviceQuantizers
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import LoadError
from mxfp4_core.loader.account import check_targets, count
from mxfp4_core.loader.bound import Bound, InModule, bind, holding_back, settle
from mxfp4_core.loader.call import Loader, LoaderCall, following
from mxfp4_core.loader.how import Arithmetic, profile_name
from mxfp4_core.loader.keys import Key
from mxfp4_core.loader.memory import HEAP
from mxfp4_core.loader.part_call import PartCall
from mxfp4_core.loader.report import LoadReport, LoadReportBuilder
from mxfp4_core.loader.target import QuantTarget


class LoadSession:
    """Quantise a model while its engine loads it, with the engine's own loaders.

    Every method may be called from any thread; `begin`, `check` and `close` want all loaders at rest.

    Args:
        config: rule, tail and NaN policy; the default quantises by ``even/even`` and refuses what is not exact.
        report: collects times and memory; a new one, on the CPU, if None.
        threads: CPU threads for one piece; torch's number if None. 1 is right where many threads load.
        quantizers: the backends that may quantise on devices, with their own kernels; the core does if None.

    Example:
        session = LoadSession(Mxfp4Config())
        target = session.target("model.layers.0.mlp.down_proj.weight", (4096, 1792), dtype=torch.bfloat16)
        layer.weight = Parameter(target.codes, requires_grad=False)
        layer.weight.weight_loader = session.wrap(target.name, layer.weight_loader)
        ...                               # the engine loads as it always does
        report = session.close()          # raises LoadError, or says what was done
    """

    def __init__(
        self,
        config: Mxfp4Config | None = None,
        *,
        report: LoadReportBuilder | None = None,
        threads: int | None = None,
        quantizers: DeviceQuantizers | None = None,
    ) -> None:
        self.config, self.report = config or Mxfp4Config.from_dict({}), report or LoadReportBuilder()
        self._threads, self._quantizers = threads, quantizers or DeviceQuantizers()
        self._profile = profile_name(self.config, get(self.config.format))
        self._lock = threading.Lock()
        self._targets: dict[str, QuantTarget] = {}
        self._kept: dict[str, tuple[str, str, int]] = {}
        self._bounds: list[Bound] = []
        self._subset = False
        self._held: weakref.finalize[..., Any] | None = None

    @property
    def targets(self) -> dict[str, QuantTarget]:
        """All targets by name, in the order in which they were made; a copy."""
        with self._lock:
            return dict(self._targets)

    def target(
        self,
        name: str,
        shape: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        format: Format = MXFP4,
        parts: Parts | None = None,
        transposed: bool = False,
        profile: str | None = None,
        tp: int | None = None,
        kind: str | None = None,
        reason: str = "",
    ) -> QuantTarget:
        """Make the target of one parameter of this rank; see `QuantTarget` for the arguments.

        Args:
            name: name of the parameter, unique in the session.
            shape: logical shape on this rank, K last.
            dtype: precision that the engine believes to load.
            device: where the parts are allocated.
            format: which parts there are.
            parts: existing tensors to fill instead, by name of the part.
            transposed: the engine's parameter has K before N.
            profile: what an override of the config says for this weight.
            tp: over how many ranks K is cut, if known.
            kind: type of the layer, for the report.
            reason: why it is quantised, for the report.

        Raises:
            LoadError: the session has a target of that name.
            ShapeError, FormatError: as `QuantTarget`.
        """
        return self._add(
            name,
            shape,
            profile=profile_name(self.config, format, profile),
            dtype=dtype,
            device=device,
            format=format,
            parts=parts,
            transposed=transposed,
            tp=tp,
            kind=kind,
            reason=reason,
        )

    def bind(
        self,
        model: nn.Module,
        *,
        prefix: str = "",
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        exact: bool = False,
        prepare: bool = True,
        backend: Backend | None = None,
        transposed: bool = False,
        tp: int | None = None,
        reason: str = "",
    ) -> dict[str, QuantTarget]:
        """Make a target of each weight of the MXFP4 modules of a model, or of one such module.

        What is loaded goes straight into the buffers of a module, which get memory when the first piece comes. Of a
        module that computes, the new weights are collected beside the old ones; `close` then derives its device layout
        again, into the same memory. Biases are the engine's to load, into ``module.bias``; `close` uses what is there.

        Args:
            model: its modules may be on the meta device, but for what no session loads.
            prefix: what stands before the names of its modules.
            dtype: of the activations, and the precision that the engine believes to load.
            device: where buffers get memory; where the module is if None, and on the CPU if that is the meta device.
            exact: the weights come quantised, by `QuantTarget.put` alone, so K may end inside a block.
            prepare: `close` prepares each module. Else the adapter does.
            backend: for this one; the one that the config chooses if None.
            transposed: as for `target`, like all that follow.
            tp: over how many ranks K is cut, if known.
            reason: why it is quantised, for the report.

        Returns:
            The targets by name of the weight, for example ``layers.0.mlp.down_proj.weight``.

        Raises:
            BackendError: no backend takes one of the modules; nothing is bound then.
            LoadError: the session has a target of that name.
            ShapeError: as `QuantTarget`.
        """
        made: dict[str, QuantTarget] = {}
        for bound in list(bind(model, self.config, prefix, dtype, device, backend, prepare=prepare)):
            module = bound.module
            own = module.profile
            own = own if exact else profile_name(self.config, module.format, own or None)
            for matrix, shape in module.shapes.items():
                target = bound.targets[matrix] = self._add(
                    ".".join(filter(None, (bound.name, module.matrices[matrix]))),
                    shape,
                    profile=own,
                    dtype=dtype,
                    format=module.format,
                    storage=InModule(bound, matrix),
                    exact=exact,
                    transposed=transposed,
                    tp=tp,
                    reason=reason,
                )
                made[target.name] = target
            bound.begin(subset=self._subset)
            with self._lock:
                self._bounds.append(bound)
        return made

    def _add(self, name: str, shape: Sequence[int], *, profile: str, **options: Any) -> QuantTarget:
        self._hold_heap()
        arithmetic = Arithmetic(
            profile, self.config.tail, self.config.nonfinite, self._threads, self._quantizers
        )
        with self._lock:
            if name in self._targets:
                raise LoadError(
                    f"{name} cannot be a target twice",
                    seen=f"a target of shape {tuple(self._targets[name].shape)}",
                    rule="a session has one target for each parameter",
                    fix="call begin() to load again into the targets that are there",
                )
            made = self._targets[name] = QuantTarget(name, shape, arithmetic=arithmetic, **options)
        if made.device.type != "cpu":
            self.report.watch(str(made.device))
        return made

    def kept(self, name: str, *, kind: str, reason: str, nbytes: int) -> None:
        """Count a parameter that stays in high precision, so that the report says so and why."""
        with self._lock:
            self._kept[name] = (kind, reason, nbytes)

    def wrap(self, name: str, weight_loader: Loader, *, part: str = "") -> Loader:
        """Return a loader with the same arguments that quantises what `weight_loader` copies.

        Args:
            name: name of a target of this session.
            weight_loader: the engine's ``(param, loaded_weight)``, ``(param, loaded_weight, shard_id)`` or
                ``(param, loaded_weight, weight_name, shard_id, expert_id)``, bound or not.
            part: the loader brings this part of a quantised weight, into a parameter of its shape; bytes stay.

        Raises:
            LoadError: there is no target of that name.
            FormatError: the weight has no such part.
        """
        target = self.targets.get(name)
        if target is None:
            raise LoadError(
                f"the loader of {name} cannot be wrapped",
                seen="no target of that name",
                rule="a parameter has a target before its loader is wrapped",
                fix="call session.target first",
            )
        call = partial(PartCall, target, target.format.part(part)) if part else partial(LoaderCall, target)

        def begin(key: Key, loaded: torch.Tensor) -> LoaderCall:
            self._hold_heap()
            return call(key, loaded, self.report)

        return following(weight_loader, begin)

    def begin(self, *, subset: bool = False, report: LoadReportBuilder | None = None) -> None:
        """Begin another load into the same storage.

        Bound modules go on computing with the weights that they have until this load is closed.

        Args:
            subset: accept a load that brings only some of the weights; the others stay as they are. Without it, a
                weight that is not loaded again is an error, because it would silently keep its old values.
            report: collects times and memory of this load; a new one if None.
        """
        self._hold_heap()
        old = self.report
        self.report = report or LoadReportBuilder(backend=old.backend, devices=old.watched)
        self._subset = subset
        for target in self.targets.values():
            target.ledger.next_load()
        for bound in self._bounds:
            bound.begin(subset=subset)

    def check(self) -> None:
        """Check that every range of every target was loaded once.

        Raises:
            LoadError: ranges are missing, duplicate or overlapping; the message names parameter, rows and shard.
        """
        check_targets(self.targets.values(), subset=self._subset)
        for bound in self._bounds:
            bound.check()

    def close(self) -> LoadReport:
        """Check the load, prepare bound modules, log the summary and return it; call `begin` to load again.

        After an error, modules that computed before this load do so with their old weights, at the same addresses.

        Raises:
            LoadError: as `check`, or a device layout does not fit the memory of the old one.
            BackendError, FormatError: a bound module cannot be prepared; the message names the weight.
        """
        self.finish()
        return self.report.say()

    def finish(self) -> None:
        """As `close`, but leave the summary to whoever holds the report, which several sessions may share."""
        if self._held is not None:
            self._held()
        with holding_back(self._bounds):
            self.check()
        settle(self._bounds, self.report)
        with self._lock:
            kept = dict(self._kept)
        count(self.report, self.targets.values(), kept, self._profile)
        self.report.quantizer = self.report.quantizer or ", ".join(self._quantizers.names)

    def _hold_heap(self) -> None:
        with self._lock:
            if self._held is None or not self._held.alive:
                HEAP.hold()
                self._held = weakref.finalize(self, HEAP.release)


__all__ = ["LoadSession"]
