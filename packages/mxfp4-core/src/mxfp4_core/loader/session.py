"""One model load: targets, wrapped loaders, and the check at the end that nothing was forgotten."""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mxfp4_core.arithmetic.formats.base import Format, Parts
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.backend.quantizers import DeviceQuantizers
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import LoadError
from mxfp4_core.loader.call import LoaderCall
from mxfp4_core.loader.keys import key_reader
from mxfp4_core.loader.memory import HEAP
from mxfp4_core.loader.report import LoadReport, LoadReportBuilder
from mxfp4_core.loader.target import Arithmetic, QuantTarget
from mxfp4_core.loader.twin import is_twin

_LOG = logging.getLogger("mxfp4_core.loader")
_MOST_PROBLEMS = 20


class LoadSession:
    """Quantise a model while its engine loads it, with the engine's own loaders.

    Every method may be called from any thread, except that `begin`, `check` and `close` want all loaders at rest.

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
        self.config = config or Mxfp4Config.from_dict({})
        self.report = report or LoadReportBuilder()
        self._threads = threads
        self._quantizers = quantizers or DeviceQuantizers()
        self._profile = self._profile_of(MXFP4)
        self._lock = threading.Lock()
        self._targets: dict[str, QuantTarget] = {}
        self._kept: dict[str, tuple[str, str, int]] = {}
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
        self._hold_heap()
        real = next(iter(parts.values())).device if parts else torch.device(device)
        if real.type != "cpu":
            self.report.watch(str(real))
        arithmetic = Arithmetic(
            self._profile_of(format, profile),
            self.config.tail,
            self.config.nonfinite,
            self._threads,
            self._quantizers,
        )
        with self._lock:
            if name in self._targets:
                raise LoadError(
                    f"{name} cannot be a target twice",
                    seen=f"a target of shape {tuple(self._targets[name].shape)}",
                    rule="a session has one target for each parameter",
                    fix="call begin() to load again into the targets that are there",
                )
            made = self._targets[name] = QuantTarget(
                name,
                shape,
                dtype=dtype,
                arithmetic=arithmetic,
                device=device,
                format=format,
                parts=parts,
                transposed=transposed,
                tp=tp,
                kind=kind,
                reason=reason,
            )
        return made

    def _profile_of(self, format: Format, profile: str | None = None) -> str:
        """Return the name of the profile that makes a format: that of an override, of the config, or its own."""
        how = self.config
        if profile is not None:
            return format.resolve(profile).name
        return format.resolve(how.profile, rule=how.rule, ties=how.ties).name

    def kept(self, name: str, *, kind: str, reason: str, nbytes: int) -> None:
        """Count a parameter that stays in high precision, so that the report says so and why."""
        with self._lock:
            self._kept[name] = (kind, reason, nbytes)

    def wrap(self, name: str, weight_loader: Callable[..., Any]) -> Callable[..., Any]:
        """Return a loader with the same arguments that quantises what `weight_loader` copies.

        Args:
            name: name of a target of this session.
            weight_loader: the engine's ``(param, loaded_weight)``, ``(param, loaded_weight, shard_id)`` or
                ``(param, loaded_weight, weight_name, shard_id, expert_id)``, bound or not.

        Raises:
            LoadError: there is no target of that name.
        """
        with self._lock:
            target = self._targets.get(name)
        if target is None:
            raise LoadError(
                f"the loader of {name} cannot be wrapped",
                seen="no target of that name",
                rule="a parameter has a target before its loader is wrapped",
                fix="call session.target first",
            )
        key_of = key_reader(weight_loader)

        @functools.wraps(weight_loader)
        def load(param: torch.Tensor, loaded_weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if is_twin(param):
                # A loader that calls itself through param.weight_loader: what it copies is being followed already.
                return weight_loader(param, loaded_weight, *args, **kwargs)
            self._hold_heap()
            key = key_of(args, kwargs)
            call = LoaderCall(target, key, loaded_weight, self.report)
            return call.run(param, lambda twin: weight_loader(twin, loaded_weight, *args, **kwargs))

        return load

    def begin(self, *, subset: bool = False, report: LoadReportBuilder | None = None) -> None:
        """Begin another load into the same storage.

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

    def check(self) -> None:
        """Check that every range of every target was loaded once.

        Raises:
            LoadError: ranges are missing, duplicate or overlapping; the message names parameter, rows and shard.
        """
        problems = [
            f"{target.name}: {problem}"
            for target in self.targets.values()
            for problem in target.ledger.problems(subset=self._subset)
        ]
        if not problems:
            return
        shown = problems[:_MOST_PROBLEMS]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise LoadError(
            f"the load is not complete: {len(problems)} finding{'s' if len(problems) > 1 else ''}",
            seen="\n        ".join(shown),
            rule="each range of each quantised weight is loaded exactly once, and its loader returns",
            fix="check the checkpoint's index and the engine's name mapping; to refresh some weights only, use "
            "begin(subset=True)",
        )

    def close(self) -> LoadReport:
        """Check the load, log its summary and return it; call `begin` to load again.

        Raises:
            LoadError: as `check`.
        """
        if self._held is not None:
            self._held()
        self.check()
        targets = [target for target in self.targets.values() if target.ledger.touched]
        for one in targets:
            before, after = one.bytes_before, one.bytes_after
            self.report.quantised(
                one.name, kind=one.kind, bytes_before=before, bytes_after=after, reason=one.reason
            )
        with self._lock:
            kept = dict(self._kept)
        for name, (kind, reason, nbytes) in kept.items():
            self.report.kept(name, kind=kind, reason=reason, nbytes=nbytes)
        used = {one.arithmetic.profile: None for one in targets} or {self._profile: None}
        self.report.profile = self.report.profile or ", ".join(used)
        self.report.quantizer = self.report.quantizer or ", ".join(self._quantizers.names)
        report = self.report.build()
        _LOG.info("%s", report.line())
        return report

    def _hold_heap(self) -> None:
        with self._lock:
            if self._held is None or not self._held.alive:
                HEAP.hold()
                self._held = weakref.finalize(self, HEAP.release)


__all__ = ["LoadSession"]
