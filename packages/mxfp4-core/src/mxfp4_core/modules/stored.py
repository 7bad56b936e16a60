"""Which modules of a model have quantised weights in a checkpoint, so that they are taken as they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import nn

from mxfp4_core.config.schema import Mxfp4Config, Override
from mxfp4_core.config.words import ACTIVATIONS, Activation
from mxfp4_core.dialects.base import Contents
from mxfp4_core.dialects.entry import Entry
from mxfp4_core.errors import ConfigError, DialectError
from mxfp4_core.modules.ask import hold_other_activations, refused_by_backends
from mxfp4_core.modules.decisions import decide, plain_reasons, why_kept
from mxfp4_core.modules.model_plan import ModelPlan
from mxfp4_core.modules.model_view import view_of
from mxfp4_core.modules.refusals import Refusal, ignoring, reasons_of, refuse
from mxfp4_core.modules.sites import Site, find_sites
from mxfp4_core.modules.weights import Weight
from mxfp4_core.naming.decision import Decision
from mxfp4_core.naming.view import ModelView

_LOG = logging.getLogger("mxfp4_core.modules")
IN_CHECKPOINT = "in the checkpoint"


@dataclass(frozen=True)
class Stored:
    """What a checkpoint says about one quantised weight.

    Attributes:
        format: name of its format.
        profile: name of the profile that made the bytes; empty where the file does not say.
        activation: how x is to be quantised; None for what the config says. An override of the config that names a
            mode for the weight outranks it.
    """

    format: str = "mxfp4"
    profile: str = ""
    activation: Activation | None = None

    @classmethod
    def of(cls, entry: Entry, contents: Contents, *, plain: bool = False) -> Stored:
        """Return what a folder says about a weight.

        Args:
            entry: the weight.
            contents: of the folder, as `settled_folder` returns them.
            plain: activations stay in high precision, whatever the folder says.

        Raises:
            DialectError: its activations are quantised in a mode that nobody knows here.
        """
        said = "none" if plain else entry.activation or contents.activation
        known = next((word for word in ACTIVATIONS if word == said), None)
        if known is None:
            raise DialectError(
                f"{entry.weight} cannot be computed with",
                seen=f"activation {said!r}",
                rule=f"activations are one of {', '.join(ACTIVATIONS)}",
                fix="ask for activation='none'",
            )
        return cls(entry.format, entry.profile or contents.profile, known)


def plan_stored(
    model: nn.Module,
    stored: Mapping[str, Stored],
    view: ModelView | None = None,
    config: Mxfp4Config | None = None,
) -> ModelPlan:
    """Plan to load the weights that a checkpoint holds quantised, and no others.

    Args:
        model: on the meta device. It is not changed.
        stored: the quantised weights, by name of the parameter in the model.
        view: facts about the model; what its modules tell if None.
        config: what the checkpoint says it was made with, to be held against what it contains; None if it says nothing.

    Raises:
        ConfigError: a weight is quantised where no module here can hold it, a module is quantised by halves, or the
            config contradicts the contents.
    """
    view = view or view_of(model)
    sites = {site.path: site for site in find_sites(model)}
    decisions: dict[str, Decision] = {}
    if config is not None:
        # The defaults of the family say why something is not in MXFP4; what is, whoever wrote it had decided.
        written = decide(config, view, check=False, stored=True)
        decisions = decide(config, view, check=False) | {
            name: found for name, found in written.items() if name in stored
        }
    reasons = plain_reasons(model, decisions) if decisions else _as_stored(model)
    profiles = dict.fromkeys(each.profile for each in stored.values())
    plan = ModelPlan(reasons=reasons, profile=", ".join(profile for profile in profiles if profile))
    for site in sites.values():
        names = [site.name(name) for name in site.weights]
        found = {name: stored[name] for name in names if name in stored}
        if not found:
            plan.reasons[site.path] = _kept(site, {name: decisions[name] for name in names if decisions})
            continue
        _check_site(site, names, found, decisions)
        formats = {each.format for each in found.values()}
        modes = {_mode(each, decisions.get(name), config) for name, each in found.items()}
        if len(formats) > 1 or len(modes) > 1:
            _contradiction(
                f"{site.path} has {' and '.join(sorted(formats))}, activations {' and '.join(sorted(modes))}",
                "all weights of a module have one format and one activation mode",
            )
        own = {name: each.profile for name, each in found.items()}
        for name in own:
            if decisions and decisions[name].pattern:  # an override has a profile of its own
                own[name] = decisions[name].profile or own[name]
        plan.add(site, own, IN_CHECKPOINT, formats.pop(), modes.pop())
    if lost := [name for name in stored if name not in plan.weights]:
        _contradiction(
            f"{lost[0]} is MXFP4" + (f", and {len(lost) - 1} more" if len(lost) > 1 else ""),
            f"MXFP4 weights belong to linears and stacks of experts, which {lost[0]} is not",
            f"quantise again with ignore=[{lost[0].removesuffix('.weight')!r}]",
        )
    return plan


def leave_activations(
    model: nn.Module,
    plan: ModelPlan,
    config: Mxfp4Config,
    devices: Sequence[str],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Leave x in high precision where a checkpoint asks to quantise it and no backend does, and say so in a warning.

    The bytes of the weights are the same either way, and the result is nearer to that of the model in high precision:
    x was to be quantised for the speed of a device that has the arithmetic. What a checkpoint holds of x (scales that
    a calibration found) is data of that arithmetic and stays unused.

    Args:
        model: with its own modules.
        plan: made by `plan_stored`; its activations change.
        config: which backend.
        devices: where the model will run, as torch names them.
        dtype: of the activations.
    """
    asked = {path: word for path, word in plan.activations.items() if word not in ("none", "auto")}
    sites = [site for site in plan.sites if site.path in asked]
    refused = {each.path: each for each in refused_by_backends(model, sites, config, plan, devices, dtype)}
    if not refused:
        return
    plan.activations.update(dict.fromkeys(refused, "none"))
    tried = [site for site in sites if site.path in refused]
    lost = {each.path for each in refused_by_backends(model, tried, config, plan, devices, dtype)}
    plan.activations.update({path: asked[path] for path in lost})
    left = [path for path in refused if path not in lost]
    for word in dict.fromkeys(asked[path] for path in left):
        paths = [path for path in left if asked[path] == word]
        _LOG.warning(
            "the checkpoint was made for activations in %s, and no backend that is chosen quantises them in %s%s: they "
            "stay in high precision there. activation=%r insists, activation='none' says so by name",
            *(word, paths[0], f" and {len(paths) - 1} more" if len(paths) > 1 else "", word),
        )
        for path in paths:
            plan.reasons[path] += f", activations in high precision instead of {word}"


def ask_backends(
    model: nn.Module,
    plan: ModelPlan,
    config: Mxfp4Config,
    devices: Sequence[str],
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Weight]:
    """Ask backends about the weights that a checkpoint holds, before any of them is read.

    Args:
        model: with its own modules.
        plan: made by `plan_stored`. With ``refused="keep"``, modules that no backend takes leave it.
        config: which backend, and what happens to what it refuses.
        devices: where the model will run, as torch names them.
        dtype: of the activations.

    Returns:
        The weights of the modules that left the plan, by name: they have to be widened to high precision.

    Raises:
        BackendError: no backend takes a module.
    """
    hold_other_activations(model, plan, config, devices, dtype)
    refusals = refused_by_backends(model, plan.sites, config, plan, devices, dtype)
    if not refusals:
        return {}
    if config.refused == "error":
        modes = {plan.activations[each.path] for each in refusals} - {"none", "auto"}
        fixes = (
            [f"pass activation='none', so that x is not rounded to {' or '.join(sorted(modes))}"]
            if modes
            else []
        )
        fixes += ["pass refused='keep', which widens them to high precision"]
        fixed = [replace(each, fix=", or ".join(filter(None, [*fixes, each.fix]))) for each in refusals]
        refuse(fixed, lambda patterns: True, something_left=False)
    gone = {each.path for each in refusals}
    weights = {
        name: plan.weights[name]
        for site in plan.sites
        if site.path in gone
        for name in map(site.name, site.weights)
    }
    plan.drop(reasons_of(refusals))
    for path, why in plan.refused.items():
        _LOG.warning("%s is widened to high precision, %s", path, why)
    return weights


def stored_config(
    model: nn.Module, plan: ModelPlan, config: Mxfp4Config, view: ModelView | None = None
) -> Mxfp4Config:
    """Return a config that decides about every module what a checkpoint holds, so that a saved copy says so.

    Args:
        model: with its own modules.
        plan: made by `plan_stored`.
        config: what else the result says.
        view: as for `plan_stored`.
    """
    view, sites = view or view_of(model), list(find_sites(model))
    held = {site.path for site in plan.sites}

    def chosen(tried: Mxfp4Config) -> set[str]:
        found = decide(tried, view, check=False)
        return {site.path for site in sites if any(found[site.name(name)].quantize for name in site.weights)}

    first = chosen(config)
    forced = [Override(pattern=f"={path}", keep=False) for path in sorted(held - first)]
    config = config.model_copy(update={"overrides": [*config.overrides, *forced]})
    if not (kept := [site.path for site in sites if site.path in first - held]):
        return config

    def works(patterns: Sequence[str]) -> bool:
        return chosen(config.model_copy(update={"ignore": [*config.ignore, *patterns]})) == held

    patterns = ignoring([Refusal(path, path, "") for path in kept], works)
    return config.model_copy(update={"ignore": [*config.ignore, *patterns]})


def _check_site(
    site: Site, names: Sequence[str], found: Mapping[str, Stored], decisions: Mapping[str, Decision]
) -> None:
    """Check that a module may hold what is stored, ``found``, of the ``names`` of its weights."""
    if site.refusal:
        _contradiction(f"{site.path} is quantised", f"it cannot be here: {site.refusal}")
    if len(found) < len(names):
        _contradiction(
            f"only {', '.join(found)} are MXFP4", f"all weights of {site.path} are quantised alike"
        )
    for name in found:
        if decisions and decisions[name].kept_by_config:
            _contradiction(f"{name} is MXFP4", f"the config keeps it: {decisions[name].reason}")


def _mode(stored: Stored, decision: Decision | None, config: Mxfp4Config | None) -> Activation:
    """Return how the input of a weight is quantised: as an override names it, else as the weight or the config says."""
    own = config.own_activation(decision.pattern) if config is not None and decision is not None else None
    return own or stored.activation or (decision.activation if decision is not None else "none")


def _as_stored(model: nn.Module) -> dict[str, str]:
    return {
        name: "a vector has no rows to quantise"
        if parameter.ndim < 2
        else "in high precision in the checkpoint"
        for name, parameter in model.named_parameters()
    }


def _kept(site: Site, decisions: Mapping[str, Decision]) -> str:
    if not decisions:
        return "in high precision in the checkpoint"
    reason = why_kept(site, decisions)
    if not reason and not site.refusal:
        name = next(iter(decisions))
        _contradiction(f"{site.path} is in high precision", f"{name} is quantised: {decisions[name].reason}")
    return reason or site.refusal


def _contradiction(seen: str, rule: str, fix: str = "write the checkpoint again") -> NoReturn:
    raise ConfigError("the config contradicts the checkpoint", seen=seen, rule=rule, fix=fix)


__all__ = ["IN_CHECKPOINT", "Stored", "ask_backends", "leave_activations", "plan_stored", "stored_config"]
