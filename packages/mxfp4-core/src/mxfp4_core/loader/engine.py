"""The layers of an engine that loads by itself: one module for each, filled by the engine's own loaders.

An engine makes the parameters of a layer, loads them through loaders of its own, and says when a layer is loaded.
`EngineLoad` keeps the account of a model (of one rank), `EngineLayer` that of one layer: what the engine's parameters
look like, who follows its loaders, and the module that computes. No weight ever exists in high precision: what is
held is what has been quantised, and the piece in the engine's hands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from mxfp4_core.backend.problem import SILU, Gate, Matrix
from mxfp4_core.backend.quantizers import DeviceQuantizers
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import BackendError, ConfigError, Mxfp4Error
from mxfp4_core.loader.account import check_targets
from mxfp4_core.loader.engine_layer import EngineLayer
from mxfp4_core.loader.engine_names import EngineDecision
from mxfp4_core.loader.engine_refusals import EngineRefusals
from mxfp4_core.loader.report import LoadReport
from mxfp4_core.loader.session import LoadSession
from mxfp4_core.modules.ask import likely_backends
from mxfp4_core.modules.base import Mxfp4Module
from mxfp4_core.modules.layers import Mxfp4Experts, Mxfp4Linear
from mxfp4_core.modules.refit import named
from mxfp4_core.parallel.ranges import shard_ranges


class EngineLoad(EngineRefusals):
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
        super().__init__(config, stored=stored)
        self.device = torch.device(device)
        self._quantizers = DeviceQuantizers(likely_backends(config, str(self.device)))
        self._layers: dict[str, EngineLayer] = {}
        self._waiting = 0

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
        refused: Mxfp4Error | None = None,
    ) -> EngineLayer:
        """Make the account of one layer; ask for its backend, and whether its weights may be cut.

        Where the weights come quantised, nobody takes the layer and the config says ``refused="keep"``, the layer
        `widens <EngineLayer>`, aloud: the engine computes it in high precision.

        Args:
            module: an `Mxfp4Linear` or `Mxfp4Experts` of the sizes of this rank, on the meta device.
            name: the engine's name of the layer, unique in the model.
            dtype: of the activations, and the precision that the engine believes to load.
            ranks: over how many ranks K of a linear is cut, or the intermediate size of experts.
            decision: what `EngineNames` said of it: how the checkpoint calls its parts.
            refused: why no backend needs to be asked.

        Raises:
            BackendError: no backend takes it; the message has what each one said.
            ShapeError: the cut goes through a block.
            LoadError: there is a layer of that name.
            Mxfp4Error: ``refused``.
        """
        self._check_cut(module, name, ranks)
        session = LoadSession(self.config, report=self.report, quantizers=self._quantizers)
        bind = functools.partial(session.bind, module, prefix=name, dtype=dtype, device=self.device)
        widens = False
        try:
            if refused is not None:
                raise refused
            made = bind(exact=self.stored)
        except (BackendError, ConfigError) as error:
            if not self.widens(module):
                raise named(error, name) from None
            self.say_refused(name, kind="linear" if "weight" in module.shapes else "experts", error=error)
            made, widens = bind(exact=True, prepare=False), True
        except Mxfp4Error as error:
            raise named(error, name) from None
        targets = dict(zip(module.matrices, made.values(), strict=True))
        suffixes = {} if decision is None else decision.suffixes
        layer = EngineLayer(self, module, name, session, targets, suffixes, widens)
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
        gate: Gate | Callable[[], Gate],
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
            gate: see there; or what looks for it, and raises a ConfigError where the engine wants something else.
            bias: see there.
            total_experts: see there.
            expert_map: see there.

        Raises:
            BackendError, ShapeError, LoadError: as `layer`.
            ConfigError: of ``gate``.
        """
        form, refused = SILU, None
        try:
            form = gate() if callable(gate) else gate
        except ConfigError as error:
            refused = error
        module = Mxfp4Experts.kind_for(form)(
            experts,
            n,
            k,
            top_k=top_k,
            gate=form,
            bias=bias,
            total_experts=total_experts,
            expert_map=expert_map,
            activation=decision.activation,
            profile=decision.profile,
            format=decision.format,
            device="meta",
            dtype=dtype,
        )
        return self.layer(module, name, dtype=dtype, ranks=ranks, decision=decision, refused=refused)

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

    def quantises(self) -> bool:
        """Return whether any layer is quantised."""
        return bool(self.layers)

    def _check_cut(self, module: Mxfp4Module, name: str, ranks: int) -> None:
        block = module.format.block
        cut: Matrix = "weight" if "weight" in module.shapes else "down"
        k = module.shapes[cut][-1]
        if ranks > 1 and (self.stored or self.config.tail == "refuse"):
            shard_ranges(k * ranks, ranks, multiple=block, tensor=f"{name}.{module.matrices[cut]}", dim="k")


__all__ = ["EngineLoad"]
