"""The layers of an engine that loads by itself: one module for each, filled by the engine's own loaders.

An engine makes the parameters of a layer, loads them through loaders of its own, and says when a layer is loaded.
`EngineLoad` keeps the account of a model (of one rank), `EngineLayer` that of one layer: what the engine's parameters
look like, who follows its loaders, and the module that computes. No weight ever exists in high precision: what is
held is what has been quantised, and the piece in the engine's hands.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from mxfp4_core.backend.problem import Gate, Matrix
from mxfp4_core.backend.quantizers import DeviceQuantizers
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import ConfigError, Mxfp4Error
from mxfp4_core.loader.account import check_targets
from mxfp4_core.loader.engine_layer import EngineLayer
from mxfp4_core.loader.engine_names import EngineDecision
from mxfp4_core.loader.report import LoadReport, LoadReportBuilder
from mxfp4_core.loader.session import LoadSession
from mxfp4_core.modules.ask import likely_backends
from mxfp4_core.modules.base import Mxfp4Module
from mxfp4_core.modules.layers import Mxfp4Experts, Mxfp4Linear
from mxfp4_core.modules.refit import named
from mxfp4_core.parallel.ranges import shard_ranges

T = TypeVar("T")
_LOG = logging.getLogger("mxfp4_core.loader")


class EngineLoad:
    """The layers of one model on one rank, as an engine makes and loads them.

    Args:
        config: how weights are quantised, and which backend computes.
        device: where the model is.
        stored: the weights come quantised, part by part.

    Example:
        load = EngineLoad(Mxfp4Config(), device="cuda:0")
        module = Mxfp4Linear(n, k, device="meta")
        layer = load.layer(module, "model.layers.0.mlp.down_proj", dtype=torch.bfloat16, ranks=2)
        for place in layer.places():
            parameter = Parameter(torch.empty(place.shape, dtype=place.dtype, device="meta"), requires_grad=False)
            parameter.weight_loader = layer.loader(place, engine_layer.weight_loader)
        ...                              # the engine loads
        layer.finish()
        layer.module(x)
    """

    def __init__(
        self, config: Mxfp4Config, *, device: torch.device | str = "cpu", stored: bool = False
    ) -> None:
        self.config, self.stored, self.device = config, stored, torch.device(device)
        self.report = LoadReportBuilder()
        self._quantizers = DeviceQuantizers(likely_backends(config, str(self.device)))
        self._layers: dict[str, EngineLayer] = {}
        self._refused: dict[str, Mxfp4Error] = {}
        self._waiting = 0
        self._lock = threading.Lock()

    @property
    def layers(self) -> dict[str, EngineLayer]:
        """The layers by name; a copy."""
        with self._lock:
            return dict(self._layers)

    def layer(
        self,
        module: Mxfp4Module,
        name: str,
        *,
        dtype: torch.dtype,
        ranks: int = 1,
        decision: EngineDecision | None = None,
    ) -> EngineLayer:
        """Make the account of one layer; ask for its backend, and whether its weights may be cut.

        Args:
            module: an `Mxfp4Linear` or `Mxfp4Experts` of the sizes of this rank, on the meta device.
            name: the engine's name of the layer, unique in the model.
            dtype: of the activations, and the precision that the engine believes to load.
            ranks: over how many ranks K of a linear is cut, or the intermediate size of experts.
            decision: what `EngineNames` said of it: how the checkpoint calls its parts.

        Raises:
            BackendError: no backend takes it; the message has what each one said.
            ShapeError: the cut goes through a block.
            LoadError: there is a layer of that name.
        """
        self._check_cut(module, name, ranks)
        session = LoadSession(self.config, report=self.report, quantizers=self._quantizers)
        try:
            made = session.bind(module, prefix=name, dtype=dtype, device=self.device, exact=self.stored)
        except Mxfp4Error as error:
            raise named(error, name) from None
        targets = dict(zip(module.matrices, made.values(), strict=True))
        suffixes = {} if decision is None else decision.suffixes
        layer = EngineLayer(self, module, name, session, targets, suffixes)
        with self._lock:
            self._layers[name] = layer
            self._waiting += 1
        return layer

    def linear(
        self, name: str, n: int, k: int, *, whole_k: int, dtype: torch.dtype, decision: EngineDecision
    ) -> EngineLayer:
        """Make a linear layer and its account.

        Args:
            name: the engine's name of it, unique in the model.
            n: rows of this rank.
            k: columns of this rank.
            whole_k: columns of all ranks.
            dtype: as for `layer`.
            decision: how it is quantised.

        Raises:
            BackendError, ShapeError, LoadError: as `layer`.
        """
        module = Mxfp4Linear(
            n,
            k,
            activation=decision.activation,
            profile=decision.profile,
            format=decision.format,
            device="meta",
        )
        return self.layer(module, name, dtype=dtype, ranks=whole_k // k, decision=decision)

    def experts(
        self,
        name: str,
        experts: int,
        n: int,
        k: int,
        *,
        ranks: int,
        dtype: torch.dtype,
        decision: EngineDecision,
        top_k: int,
        gate: Gate,
        bias: bool = False,
        total_experts: int = 0,
        expert_map: torch.Tensor | None = None,
    ) -> EngineLayer:
        """Make routed experts and their account.

        Args:
            name: the engine's name of them, unique in the model.
            experts: how many live on this rank.
            n: intermediate size of this rank.
            k: hidden size.
            ranks: over how many the intermediate size is cut.
            dtype: as for `layer`.
            decision: how they are quantised.
            top_k: as for `Mxfp4Experts`, like all that follow.
            gate: see there.
            bias: see there.
            total_experts: see there.
            expert_map: see there.

        Raises:
            BackendError, ShapeError, LoadError: as `layer`.
        """
        module = Mxfp4Experts.kind_for(gate)(
            experts,
            n,
            k,
            top_k=top_k,
            gate=gate,
            bias=bias,
            total_experts=total_experts,
            expert_map=expert_map,
            activation=decision.activation,
            profile=decision.profile,
            format=decision.format,
            device="meta",
            dtype=dtype,
        )
        return self.layer(module, name, dtype=dtype, ranks=ranks, decision=decision)

    def kept(self, name: str, *, kind: str, reason: str, nbytes: int) -> None:
        """Count a layer that stays in high precision, so that the report says so and why."""
        self.report.kept(name, kind=kind, reason=reason, nbytes=nbytes)

    def refuse(self, name: str, method: T, *, kind: str, error: Mxfp4Error) -> T:
        """Keep a layer in high precision that cannot be MXFP4, aloud, where the config says so: ``refused="keep"``.

        Args:
            name: of the layer.
            method: what makes and computes it in the engine without quantisation.
            kind: type of the layer, for the report.
            error: why it cannot.

        Returns:
            The method. Once the engine says to it that the model is loaded, it asks whether anything is quantised.

        Raises:
            Mxfp4Error: the config does not, and it is the error that was given; or the weights come quantised.
        """
        if self.config.refused != "keep":
            raise error
        if self.stored:
            raise type(error)(
                error.what,
                seen=error.seen,
                rule=f"{error.rule}; refused='keep' is about weights that are quantised while they load",
                fix=f"{error.fix}; or widen the folder first: mxfp4 dequantize",
            ) from error
        with self._lock:
            self._refused[name] = error
        _LOG.warning("%s stays in high precision, refused: %s: %s", name, error.what, error.seen)
        self.report.kept(name, kind=kind, reason=f"refused: {error.what}", nbytes=0)
        after: Callable[..., Any] = getattr(method, "process_weights_after_loading")  # noqa: B009

        @functools.wraps(after)
        def loaded(*args: Any, **kwargs: Any) -> Any:
            self._check_some()
            return after(*args, **kwargs)

        vars(method)["process_weights_after_loading"] = loaded
        return method

    def check(self) -> None:
        """Check the first load of all layers that do not compute yet.

        Raises:
            LoadError: ranges are missing, duplicate or overlapping.
        """
        check_targets([each for layer in self.layers.values() for each in layer.problems()], subset=False)

    def finished(self) -> LoadReport | None:
        """Say that a layer is loaded; with the last one the summary is logged, and returned."""
        with self._lock:
            self._waiting -= 1
            if self._waiting:
                return None
        return self.report.say()

    def _check_some(self) -> None:
        if self._layers:
            return
        first = next(iter(self._refused.values()))
        raise ConfigError(
            "nothing is left to quantise",
            seen=f"{len(self._refused)} layers, all refused; the first one: {first.what}: {first.seen}",
            rule="a config of quantisation quantises at least one weight",
            fix=f"{first.fix}; or serve without the method",
        )

    def _check_cut(self, module: Mxfp4Module, name: str, ranks: int) -> None:
        block = module.format.block
        cut: Matrix = "weight" if "weight" in module.shapes else "down"
        k = module.shapes[cut][-1]
        if ranks > 1 and (self.stored or self.config.tail == "refuse"):
            shard_ranges(k * ranks, ranks, multiple=block, tensor=f"{name}.{module.matrices[cut]}", dim="k")


__all__ = ["EngineLoad"]
