"""The load of a checkpoint that is quantised already: its own codes and scales, onto the chosen backend."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.core_model_loading import WeightTransform

from mxfp4_core.backend import settled_folder
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.dialects import NATIVE, concat, interleave
from mxfp4_core.errors import LoadError
from mxfp4_core.loader import LoadReportBuilder
from mxfp4_core.modules import (
    ModelPlan,
    Site,
    Stored,
    Weight,
    ask_backends,
    decide,
    find_gate,
    find_sites,
    leave_activations,
    plan_stored,
    stored_config,
)
from mxfp4_core.naming import ModelView
from mxfp4_transformers import converters
from mxfp4_transformers.compose import Composed, compose
from mxfp4_transformers.filler import Filler
from mxfp4_transformers.folder import Folder, Marker
from mxfp4_transformers.messages import some
from mxfp4_transformers.ops import Placed
from mxfp4_transformers.plan import check_biases
from mxfp4_transformers.targets import Targets
from mxfp4_transformers.view import view_of

_LOG = logging.getLogger("mxfp4_transformers")


@dataclass
class Serialised:
    """One load from a quantised folder.

    Attributes:
        folder: the checkpoint.
        files: transformers reads the files of the checkpoint; else it is given `state`.
        state: what transformers loads, which it was given before the model was there.
        composed: what each weight of the model is made of, by name.
        config: what a saved copy of the model says about itself.
        widened: weights that no backend takes and that are kept, by name.
        used: the conversions of the model that the names of the folder make use of.
        insists: the caller named the activation of the checkpoint, so that a backend does that or refuses.
    """

    folder: Folder
    files: bool = False
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    composed: dict[str, Composed] = field(default_factory=dict[str, Composed])
    config: CoreConfig | None = None
    widened: dict[str, Weight] = field(default_factory=dict[str, Weight])
    used: list[WeightTransform] = field(default_factory=list[WeightTransform])
    insists: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Serialised:
        # transformers copies configs, and one of them carries this to the quantizer; one load has one.
        return self

    def plan(self, model: Any, core: CoreConfig, devices: list[str], dtype: torch.dtype) -> ModelPlan:
        """Decide from the folder what each module is, and check that it is complete.

        Args:
            model: on the meta device, with its own modules.
            core: what was agreed on.
            devices: where the model will be.
            dtype: of the model.

        Raises:
            LoadError: weights are missing, have no place in the model or do not fit.
            ConfigError: the folder contradicts itself.
            BackendError: no backend takes a weight, as the folder says how to compute with it.
        """
        said, conversions = core, converters.default_conversions(model)
        contents, core = settled_folder(self.folder.contents, core, devices)
        groups, self.used = converters.matched(self.folder.names, conversions, model)
        composed = compose(contents.entries, groups, model)
        known = set(dict(model.named_parameters(remove_duplicate=False)))
        self._check_places(composed, known, model)
        self.composed = {
            name: replace(each, group=tuple(other for other in each.group if other in known))
            for name, each in composed.items()
            if name in known
        }
        plain = self.insists and core.activation == "none"
        stored = {name: Stored.of(each.first, contents, plain=plain) for name, each in self.composed.items()}
        view = view_of(model, self.folder.headers)
        plan = plan_stored(model, stored, view, core if self.folder.dialect.name == NATIVE.name else None)
        check_biases(model, plan, {target for group in groups for target in group.targets})
        for site in plan.sites:
            self._arrange(site)
        self._check_shapes(plan)
        _check_rest(model, view)
        if not self.insists:
            leave_activations(model, plan, core, devices, dtype)
        self.widened = ask_backends(model, plan, core, devices, dtype)
        self.config = stored_config(model, plan, said, view)
        self._say_what_is_left_out(plan)
        self.state.update(self.folder.plain(), **{made.group[0]: Marker() for made in self.composed.values()})
        return plan

    def placed(
        self,
        targets: Targets,
        report: LoadReportBuilder,
        conversions: list[WeightTransform],
        dtype: torch.dtype,
        device_of: Callable[[str], torch.device],
    ) -> Placed:
        """Return the converter that fills the quantised weights; it comes before those of the model.

        Args:
            targets: where they go.
            report: of the load.
            conversions: those of the model.
            dtype: of the model.
            device_of: where transformers puts a parameter, once the load has begun.
        """
        filler = Filler(targets, self.widened, self.composed, self.folder.checkpoint, report, dtype)
        groups = {made.group[0]: made.group for made in self.composed.values()}
        found = {name: name for name in groups}
        if self.files:
            found = {
                stored: made.group[0]
                for made in self.composed.values()
                for entry in made.entries
                for stored in entry.names
            }
        arriving = converters.renamed(
            self.folder.checkpoint.tensors if self.files else self.state, conversions
        )
        return Placed(filler, groups, {arriving[name]: target for name, target in found.items()}, device_of)

    def _say_what_is_left_out(self, plan: ModelPlan) -> None:
        if self.folder.contents.static and "fp8" in plan.activations.values():
            _LOG.warning(
                "%d scales of activations in the checkpoint are not used: x gets its scales when it is computed with",
                len(self.folder.contents.static),
            )

    def _arrange(self, site: Site) -> None:
        """Give fused rows of gate and up the order that the model has."""
        if site.held or not site.is_experts or (gate := find_gate(site.module)) is None or not gate.gated:
            return
        name = site.name("gate_up_proj")
        made = self.composed[name]
        described = self.folder.checkpoint.config.get("quantization_config")
        silent = self.folder.dialect.name == NATIVE.name and "interleaved" not in (described or {})
        alternate = made.first.interleaved
        # Experts that were apart come together as the model's conversions put them, which is its own order.
        if len(made.entries) > 1 or silent or alternate == gate.interleaved:
            return
        n = made.first.shape[-2] // 2
        if alternate:
            parts = {
                key: concat([part.take(0, step=2, axis=1), part.take(1, step=2, axis=1)], 1)
                for key, part in made.parts.items()
            }
        else:
            parts = {
                key: interleave([part.take(0, n, axis=1), part.take(n, axis=1)], 1)
                for key, part in made.parts.items()
            }
        self.composed[name] = replace(made, parts=parts)

    def _check_places(self, composed: Mapping[str, Composed], known: set[str], model: Any) -> None:
        ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
        lost = [
            entry.weight
            for name, each in composed.items()
            for entry in each.entries
            if name not in known and not any(re.search(pattern, name) for pattern in ignored)
        ]
        if lost:
            raise LoadError(
                f"{len(lost)} quantised weights have no place in {type(model).__name__}",
                seen=some(lost),
                rule="a quantised weight of the checkpoint becomes a weight of the model",
                fix="use the class of model and the config.json that belong to the checkpoint",
            )

    def _check_shapes(self, plan: ModelPlan) -> None:
        for name, weight in plan.weights.items():
            made = {part: recipe.shape for part, recipe in self.composed[name].parts.items()}
            wanted = {part: shape for part, shape in weight.shapes.items() if part in made}
            if made != wanted or self._logical(name) not in (None, weight.shape):
                names = [entry.weight for entry in self.composed[name].entries]
                raise LoadError(
                    f"{name} cannot be filled",
                    seen=f"{len(names)} weights, {names[0]} first, make {made}",
                    rule=f"the model needs {wanted} there, of a weight {list(weight.shape)}",
                    fix="complete the checkpoint, or use the config.json that belongs to it",
                )

    def _logical(self, name: str) -> tuple[int, ...] | None:
        made = self.composed[name]
        return made.first.shape if len(made.entries) == 1 and made.parts is made.first.parts else None


def _check_rest(model: Any, view: ModelView) -> None:
    """Refuse a folder that lacks weights: transformers would fill them with random numbers and a warning."""
    there = {name for tensor in view.tensors.values() for name in tensor.parameters}
    decisions = decide(CoreConfig(), view, check=False, stored=True)
    ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    lost = [
        name
        for site in find_sites(model)
        for name in (site.name(weight) for weight in site.weights)
        if name not in there
        and decisions[name].quantize
        and not any(re.search(pattern, name) for pattern in ignored)
    ]
    if lost:
        raise LoadError(
            "the checkpoint lacks weights of the model",
            seen=some(lost),
            rule="every linear and every expert is in the checkpoint, quantised or not",
            fix="complete the checkpoint; a shard may be missing",
        )


__all__ = ["Serialised"]
