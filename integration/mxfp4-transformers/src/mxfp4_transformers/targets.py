"""The targets of one load: each module is bound to the session where its first piece arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from mxfp4_core.loader import LoadSession, QuantTarget
from mxfp4_core.modules import ModelPlan, Parking, Site, Weight
from mxfp4_transformers.sharding import Share


@dataclass
class Targets:
    """Targets by name of the weight.

    transformers resolves a ``device_map`` such as ``"auto"`` after it has asked for conversions. So the device of a
    module is that of what comes first.

    Attributes:
        session: what they belong to.
        model: with the empty modules in place.
        plan: which modules those are.
        dtype: of the model.
        exact: the weights come quantised.
        wide: dtypes from which weights are quantised, by name, where that is not the dtype of the model.
        shares: what this process holds of the weights that processes share, by name.
        parking: says by name of a weight where it lies, if that is not where it is computed with.
    """

    session: LoadSession
    model: Any
    plan: ModelPlan
    dtype: torch.dtype
    exact: bool
    wide: Mapping[str, torch.dtype] = field(default_factory=dict[str, torch.dtype])
    shares: Mapping[str, Share] = field(default_factory=dict[str, Share])
    parking: Callable[[str], Parking | None] = lambda name: None
    _made: dict[str, QuantTarget] = field(default_factory=dict[str, QuantTarget])

    @cached_property
    def _sites(self) -> dict[str, Site]:
        return {site.name(name): site for site in self.plan.sites for name in site.weights}

    @property
    def weights(self) -> Mapping[str, Weight]:
        """The weights that have a target."""
        return self.plan.weights

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight in the checkpoint, k last."""
        return self.plan.weights[name].shape

    def at(self, name: str, device: torch.device) -> QuantTarget:
        """Return the target of a weight; its module gets memory on ``device`` unless a piece came before."""
        if name not in self._made:
            self._bind(self._sites[name], device)
        return self._made[name]

    def check(self) -> None:
        """Check that every range of every weight was loaded once.

        Raises:
            LoadError: as `LoadSession.check`.
        """
        for site in self.plan.sites:
            if site.name(next(iter(site.weights))) not in self._made:
                self._bind(site, torch.device("cpu"))
        self.session.check()

    def _bind(self, site: Site, device: torch.device) -> None:
        module = self.model.get_submodule(site.path)
        if (parking := self.parking(site.name(next(iter(site.weights))))) is not None:
            module.park(parking)
            module._is_hf_initialized = (
                True  # else transformers fills what it finds nowhere with random numbers
            )
        self._made |= self.session.bind(
            module,
            prefix=site.path,
            dtype=self.wide.get(site.name(next(iter(site.weights))), self.dtype),
            device=device,
            exact=self.exact,
            prepare=False,
            transposed=site.transposed,
            reason=self.plan.reasons[site.path],
        )


__all__ = ["Targets"]
