"""Decide what becomes MXFP4 of a model in high precision, before a weight is touched."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import ConfigError, PatternError, ShapeError
from mxfp4_core.modules.ask import hold_other_activations, refused_by_backends
from mxfp4_core.modules.decisions import decide, plain_reasons, why_kept
from mxfp4_core.modules.model_plan import ModelPlan
from mxfp4_core.modules.model_view import view_of
from mxfp4_core.modules.refusals import Refusal, ignoring, reasons_of, refuse
from mxfp4_core.modules.sites import Site, find_sites
from mxfp4_core.naming.braces import collapse
from mxfp4_core.naming.decision import Decision
from mxfp4_core.naming.view import ModelView
from mxfp4_core.naming.vocabulary import DEFAULT_FUSED, fused_names, shards_of

_LOG = logging.getLogger("mxfp4_core.modules")
_HOLDABLE = (
    "weights of torch.nn.Linear and of stacked experts can be MXFP4 here; nothing else stays in high "
    "precision unless the config says so"
)


def plan_model(
    model: nn.Module,
    config: Mxfp4Config,
    view: ModelView | None = None,
    *,
    devices: Sequence[str] = (),
    dtype: torch.dtype = torch.bfloat16,
) -> ModelPlan:
    """Decide what becomes MXFP4 of a model in high precision, and ask a backend about all of it.

    Args:
        model: in memory or on the meta device. It is not changed.
        config: what to quantise, and for which backend.
        view: facts about the model; what its modules tell if None.
        devices: where it will run, as torch names them; backends are asked about each.
        dtype: of the activations.

    Raises:
        PatternError: a pattern of the config matches nothing, or splits what belongs together.
        ConfigError: modules are to be quantised that cannot be, and the config does not keep what is refused.
        ShapeError: that, because k of a weight is no multiple of 32 and the config does not pad.
        BackendError: that, because no backend takes them.
    """
    view = view or view_of(model)
    sites = {site.path: site for site in find_sites(model)}
    decisions = decide(config, view)
    plan = ModelPlan(reasons=plain_reasons(model, decisions), profile=config.resolved_profile())
    refusals: list[Refusal] = []
    for site in sites.values():
        mine = {site.name(name): decisions[site.name(name)] for name in site.weights}
        if reason := why_kept(site, mine):
            plan.reasons[site.path] = reason
            continue
        # A report groups by reason, and what is quantised because everything is needs none.
        reason = next((found.reason for found in mine.values() if found.pattern), "") or site.held
        profiles = {name: found.profile or "" for name, found in mine.items()}
        first = next(iter(mine.values()))
        plan.add(site, profiles, reason, activation=first.activation, format=first.format)
        refusals += _refused_by_loader(site, plan, config)
    refusals += _without_module(model, plan, decisions, sites.values())
    hold_other_activations(model, plan, config, devices, dtype)
    gone = {each.path for each in refusals}
    asked = [site for site in plan.sites if site.path not in gone]
    refusals += refused_by_backends(model, asked, config, plan, devices, dtype)
    if refusals:
        _settle_refusals(plan, refusals, model, config, view)
    say_held(plan.sites)
    if not plan.sites:
        raise ConfigError(
            "nothing is left to quantise",
            seen=f"{len(decisions)} parameters, all kept",
            rule="a config of quantisation quantises at least one weight",
            fix="quantise more, or load without quantization_config",
        )
    return plan


def say_held(sites: Iterable[Site]) -> None:
    """Warn which modules keep their own code, so that no backend computes with them."""
    found: dict[str, list[str]] = {}
    for site in sites:
        if site.held:
            found.setdefault(site.held, []).append(site.path)
    for why, paths in found.items():
        _LOG.warning("%s: MXFP4 in memory, widened in each call, since %s", ", ".join(collapse(paths)), why)


def _settle_refusals(
    plan: ModelPlan, refusals: list[Refusal], model: nn.Module, config: Mxfp4Config, view: ModelView
) -> None:
    """Refuse, or keep what is refused together with what cannot be separated from it."""
    refusals = [*refusals, *_siblings(plan, refusals)]
    gone = {each.path for each in refusals}
    sites = list(find_sites(model))
    wanted = {site.path for site in plan.sites} - gone

    def works(patterns: Sequence[str]) -> bool:
        tried = config.model_copy(update={"ignore": [*config.ignore, *patterns]})
        try:
            found = decide(tried, view)
        except PatternError:
            return False
        chosen = {
            site.path for site in sites if any(found[site.name(name)].quantize for name in site.weights)
        }
        return wanted <= chosen and not gone & chosen and not _lost(model, found, sites)

    if config.refused == "keep":
        plan.drop(reasons_of(refusals))
        plan.ignore = ignoring(refusals, works)
        for path, why in plan.refused.items():
            _LOG.warning("%s stays in high precision, %s", path, why)
        return
    refuse(refusals, works, something_left=bool(wanted))


def _siblings(plan: ModelPlan, refusals: Sequence[Refusal]) -> list[Refusal]:
    """Return refusals for what engines fuse with something refused: the parts of one kernel are alike."""
    gone = {each.path for each in refusals}
    linears = {site.path for site in plan.sites}
    found: dict[str, Refusal] = {}
    for each in refusals:
        for fused, _ in fused_names(each.path, DEFAULT_FUSED):
            for path in shards_of(fused, DEFAULT_FUSED):
                if path in linears - gone:
                    found[path] = Refusal(path, path, f"engines fuse it with {each.path}, which is refused")
    return list(found.values())


def _refused_by_loader(site: Site, plan: ModelPlan, config: Mxfp4Config) -> Iterable[Refusal]:
    if site.refusal:
        yield Refusal(site.path, site.path, site.refusal)
        return
    for name, shape in site.weights.items():
        block = plan.weights[site.name(name)].kind.block
        if shape[-1] % block and config.tail == "refuse":
            yield Refusal(
                site.path,
                site.name(name),
                f"k = {shape[-1]} in shape {list(shape)}",
                f"blocks of {block} run along k",
                "pass tail='pad' to pad with zeros, which is exact",
                ShapeError,
            )
            return


def _without_module(
    model: nn.Module, plan: ModelPlan, decisions: Mapping[str, Decision], sites: Iterable[Site]
) -> list[Refusal]:
    """Refuse weights that are to be quantised and that no module here can hold; embeddings are kept, with a reason."""
    for name, decision in decisions.items():
        if decision.quantize and isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding):
            plan.reasons[name] = "an embedding is looked up, not multiplied"
    return [
        Refusal(
            name.removesuffix(".weight"), f"{name} of {kind}", f"{kind} is no linear", _HOLDABLE, loose=True
        )
        for name, kind in _lost(model, decisions, sites).items()
    ]


def _lost(model: nn.Module, decisions: Mapping[str, Decision], sites: Iterable[Site]) -> dict[str, str]:
    """Return weights that are to be quantised and that no module here can hold, each with the kind of its module."""
    known = {site.name(name) for site in sites for name in site.weights}
    found = {}
    for name, decision in decisions.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if decision.quantize and name not in known and not isinstance(module, nn.Embedding):
            found[name] = type(module).__name__
    return found


__all__ = ["plan_model"]
