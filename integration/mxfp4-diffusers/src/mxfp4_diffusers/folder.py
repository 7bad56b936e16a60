"""A checkpoint that is quantised already, in any dialect, as diffusers is to see it.

diffusers walks through the tensors of each file by name. Of a quantised folder it is shown the names of the model:
what is in high precision with its values, which are read when it comes to them, and for each quantised weight an empty
tensor that stands for it. The parts are read by `Targets`, from where the dialect says they are.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mxfp4_core.backend import settled_folder
from mxfp4_core.checkpoint import Checkpoint
from mxfp4_core.config import MACHINE
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.dialects import NATIVE, Recipe
from mxfp4_core.errors import DialectError, LoadError
from mxfp4_core.jobs import settings_of
from mxfp4_core.loader import StoredTensors
from mxfp4_core.modules import (
    ModelPlan,
    Stored,
    Weight,
    ask_backends,
    leave_activations,
    plan_stored,
    stored_config,
)
from mxfp4_core.naming import Headers, ModelView


class Folder(StoredTensors):
    """A quantised checkpoint, open, for the models of diffusers."""

    @classmethod
    def quantised(cls, path: Path) -> Folder:
        """Open a folder whose config.json says that it is quantised.

        Raises:
            CheckpointError: nothing to read, or damaged files.
            DialectError: no dialect reads it, or it contradicts itself, as by codes without scales.
        """
        found = cls.open(path)
        if not isinstance(found, cls):
            raise DialectError(
                f"{path} is not quantised as its config.json says",
                seen="a quantization_config, and all weights in high precision",
                rule="the codes and scales of each quantised weight are in the files",
                fix="take quantization_config out of config.json, or get the files that belong to it",
            )
        return found

    @property
    def described(self) -> Headers:
        """Dtype and shape of each weight and tensor, by name; of a quantised one, those of its values."""
        values = {name: ("U8", entry.shape) for name, entry in self.contents.entries.items()}
        return {**values, **{name: (recipe.dtype, recipe.shape) for name, recipe in self.tensors.items()}}

    def plan(
        self, model: Any, view: ModelView, core: CoreConfig, devices: list[str], dtype: torch.dtype
    ) -> tuple[ModelPlan, CoreConfig, dict[str, Weight]]:
        """Decide from the folder what each module is.

        Args:
            model: on the meta device, with its own modules.
            view: what diffusers knows about it, with what is `described`.
            core: which backend.
            devices: where the model will be.
            dtype: of the model.

        Returns:
            The plan, what a saved copy of the model says about itself, and the weights that no backend takes and that
            are widened.

        Raises:
            LoadError: a weight has no place in the model, or another shape there.
            ConfigError: the folder contradicts itself.
            BackendError: no backend takes a weight, as the folder says how to compute with it.
        """
        entries, contents = self.contents.entries, self.contents
        if lost := [name for name in entries if name not in view.parameters]:
            raise LoadError(
                f"{len(lost)} quantised weights have no place in {view.model}",
                seen=", ".join(lost[:5]),
                rule="a quantised weight of the checkpoint becomes a weight of the model",
                fix="use the class of model and the config.json that belong to the checkpoint",
            )
        said, _ = settings_of(self.checkpoint, self.dialect, contents)
        said = said.model_copy(update={key: getattr(core, key) for key in MACHINE})
        if "activation" in core.model_fields_set and not contents.says_activation:
            said = said.model_copy(update={"activation": core.activation})
        contents, running = settled_folder(contents, said, devices)
        stored = {name: Stored.of(each, contents) for name, each in entries.items()}
        plan = plan_stored(model, stored, view, running if self.dialect.name == NATIVE.name else None)
        for name, weight in plan.weights.items():
            if entries[name].shape != weight.shape:
                raise LoadError(
                    f"{name} cannot be filled",
                    seen=f"a weight {list(entries[name].shape)}",
                    rule=f"the model has {list(weight.shape)} there",
                    fix="use the config.json that belongs to the checkpoint",
                )
        leave_activations(model, plan, running, devices, dtype)
        widened = ask_backends(model, plan, running, devices, dtype)
        return plan, stored_config(model, plan, said, view), widened

    def shown(self, tensors: Mapping[str, torch.Tensor]) -> Shown:
        """Return what diffusers is to see of a file.

        Args:
            tensors: what it has read of the file, which says which one that is.
        """
        entries = self.contents.entries
        mine = [name for name, entry in entries.items() if entry.parts and _first(entry.names) in tensors]
        plain = {name: each for name, each in self.tensors.items() if _first(each.names) in tensors}
        return Shown(mine, plain, self.checkpoint)


def _first(names: tuple[str, ...]) -> str:
    return names[0] if names else ""


class Shown(dict[str, torch.Tensor]):
    """The tensors of one file, read when diffusers comes to them."""

    def __init__(self, stored: list[str], plain: Mapping[str, Recipe], checkpoint: Checkpoint) -> None:
        super().__init__(dict.fromkeys(stored, torch.empty(0, dtype=torch.uint8)))
        super().update({name: torch.empty(0) for name in plain})
        self._plain, self._checkpoint = plain, checkpoint

    def items(self) -> ItemsView[str, torch.Tensor]:  # type: ignore[override]
        """Read what is in high precision, one after the other."""
        return _Reading(self)

    def value(self, name: str) -> torch.Tensor:
        """Return a tensor in high precision, or what stands for a quantised weight."""
        recipe = self._plain.get(name)
        return self[name] if recipe is None else recipe.load(self._checkpoint)


class _Reading(ItemsView[str, torch.Tensor]):
    def __init__(self, shown: Shown) -> None:
        super().__init__(shown)
        self._shown = shown

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in list(self._shown):
            yield name, self._shown.value(name)


__all__ = ["Folder", "Shown"]
