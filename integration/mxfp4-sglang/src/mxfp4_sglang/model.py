"""One model of one process: which of its layers are MXFP4, and the account of their load."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mxfp4_core.config import Mxfp4Config
from mxfp4_core.loader import EngineDecision, EngineLoad, EngineNames


@dataclass
class Model:
    """What is known of a model while SGLang builds and loads it.

    Attributes:
        core: the config.
        stored: the weights are quantised in the checkpoint.
        folder: the checkpoint, where it is at hand.
        config: contents of its config.json.
        fused: modules that the engine fuses, and the projections in each.
        renames: pairs (engine, checkpoint) of runs of names that mean the same.
        translated: name in the checkpoint of each quantised layer that the engine calls differently, by its name there.
        made_up: there is no checkpoint: the weights are what they happen to be.
    """

    core: Mxfp4Config
    stored: bool = False
    folder: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    fused: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    renames: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    translated: dict[str, str] = field(default_factory=dict[str, str])
    made_up: bool = False
    _names: EngineNames | None = None
    _load: EngineLoad | None = None
    _takers: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])

    def decide(self, name: str, shape: Sequence[int] | None = None) -> EngineDecision:
        """Decide about one layer by SGLang's name of it.

        Raises:
            PatternError: a pattern matches nothing, or splits what SGLang fuses.
            LoadError: the folder holds some projections of it quantised and others not.
        """
        if self._names is None:
            self._names = EngineNames(
                self.core,
                model_config=self.config,
                folder=None if self.made_up else self.folder,
                fused=self.fused,
                renames=self.renames,
                stored=self.stored,
            )
        found = self._names.decide(self.translated.get(name, name), shape)
        # Parts come under the names of our own dialect, whichever way the folder stores them: see `hooks`.
        return dataclasses.replace(found, suffixes={})

    def load(self, device: torch.device) -> EngineLoad:
        """Return the account of the load, which begins with the first layer.

        Args:
            device: where the model is.
        """
        if self._load is None:
            self._load = EngineLoad(self.core, device=device, stored=self.stored)
        return self._load

    def hosts(self, take: Callable[[], None]) -> None:
        """Remember how a layer takes what SGLang loaded past our loaders."""
        self._takers.append(take)

    def keep(self, name: str, kind: str, reason: str, device: torch.device) -> None:
        """Count a layer that stays in high precision."""
        self.load(device).kept(name, kind=kind, reason=reason, nbytes=0)

    def unused(self, name: str, kind: str) -> str:
        """Return a name that no layer of the model has: SGLang leaves out the names of some."""
        taken = self._load.layers if self._load is not None else {}
        numbered = (f"{name or kind}.{number}" for number in itertools.count(1))
        return name if name and name not in taken else next(each for each in numbered if each not in taken)

    def loaded(self) -> None:
        """Check, once all layers are made, that every pattern had something to do, and take what came another way.

        Raises:
            PatternError: one had not.
        """
        if self._names is not None:
            self._names.check()
        while self._takers:
            self._takers.pop(0)()


__all__ = ["Model"]
