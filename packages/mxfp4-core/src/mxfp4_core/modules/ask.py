"""Ask backends about the weights of a plan, before any of them is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mxfp4_core.backend.device import Device
from mxfp4_core.backend.problem import Problem
from mxfp4_core.backend.protocol import Backend
from mxfp4_core.backend.select import default_problem, explain, lacks_activation, select_backend
from mxfp4_core.backend.selection import Selection
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import BackendError, Mxfp4Error
from mxfp4_core.modules.base import Mxfp4Module
from mxfp4_core.modules.empty import empty_module
from mxfp4_core.modules.held import Mxfp4Held
from mxfp4_core.modules.model_plan import ModelPlan
from mxfp4_core.modules.refusals import Refusal
from mxfp4_core.modules.sites import Site


def device_names(device_map: Any) -> list[str]:
    """Return the devices on which a model computes by its ``device_map``, or the one that ``"auto"`` begins with.

    What such a map puts on the CPU or the disk beside another device is computed with there.

    Args:
        device_map: None, a word such as ``"auto"``, a device, or devices by name of a module, as accelerate takes it.
    """
    if device_map is None:
        return ["cpu"]
    if isinstance(device_map, str):
        device = Device.current()
        return [device.torch_name]
    values = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    names = [_name_of(value) for value in values]
    found = [name for name in dict.fromkeys(names) if name not in ("meta", "disk")]
    return [name for name in found if name != "cpu"] or found or ["cpu"]


def _name_of(value: Any) -> str:
    if type(value) is int:
        device = Device.current()
        return f"{device.torch_type}:{value}"
    name = str(value)
    return name if name in ("cpu", "meta", "disk") or ":" in name else f"{name}:{Device.of(name).index}"


def likely_backends(config: Mxfp4Config, device_map: Any) -> dict[str, list[Backend]]:
    """Return the backend that an ordinary layer gets on each device; nothing where there is none."""
    found: dict[str, list[Backend]] = {}
    for name in device_names(device_map):
        problem = replace(default_problem(), device=Device.of(name))
        with suppress(Mxfp4Error):
            found[name] = [select_backend(problem, **_choice(config)).backend]
    return found


def chosen_backends(
    model: nn.Module, config: Mxfp4Config, devices: Iterable[str], dtype: torch.dtype
) -> dict[str, list[Backend]]:
    """Return the backends that the MXFP4 modules of a model get on each device.

    Raises:
        BackendError: there is none for one of them.
    """
    chosen: dict[str, list[Backend]] = {}
    for name in devices:
        modules = (module for module in model.modules() if isinstance(module, Mxfp4Module))
        found = (module.problem for module in modules if not isinstance(module, Mxfp4Held))
        problems = dict.fromkeys(_at(problem, name, dtype) for problem in found)
        selected = (select_backend(each, **_choice(config)) for each in problems)
        chosen[name] = list({each.backend.name: each.backend for each in selected}.values())
    return chosen


def refused_by_backends(
    model: nn.Module,
    sites: Sequence[Site],
    config: Mxfp4Config,
    plan: ModelPlan,
    devices: Iterable[str],
    dtype: torch.dtype,
) -> list[Refusal]:
    """Return the modules that no backend takes on one of the devices.

    Raises:
        BackendError: the config names a backend that does not exist.
    """
    problems = {
        site.path: empty_module(
            model, site, activation=plan.activation_of(site), format=plan.format_of(site), dtype=dtype
        ).problem
        for site in sites
        if not site.held
    }
    answers: dict[Problem, Selection] = {}
    found = {site.path: _unrounded(site, plan) for site in sites if site.held and _rounds(site, plan)}
    for name in devices:
        for path, plain in problems.items():
            problem = _at(plain, name, dtype)
            if problem not in answers:
                answers[problem] = explain(problem, **_choice(config))
            answer = answers[problem]
            if answer.choice is None and path not in found:
                why = "\n        ".join([f"no backend for {problem}", answer.reason, *map(str, answer.trace)])
                rule = "a backend must accept the problem, and be automatic on the device or named"
                found[path] = Refusal(path, path, why, rule, answer.fix, BackendError)
    return list(found.values())


def hold_other_activations(
    model: nn.Module, plan: ModelPlan, config: Mxfp4Config, devices: Iterable[str], dtype: torch.dtype
) -> None:
    """Let experts keep their own code where no backend that is chosen has their activation; see ``held``.

    Args:
        model: with its own modules.
        plan: its sites change.
        config: which backend.
        devices: where the model will run, as torch names them.
        dtype: of the activations.
    """
    names = list(devices)
    lacking: dict[Problem, str] = {}
    for place, site in enumerate(plan.sites):
        if not site.is_experts or site.held or site.refusal:
            continue
        found = empty_module(model, site, activation=plan.activation_of(site), format=plan.format_of(site))
        for problem in (_at(found.problem, name, dtype) for name in names):
            if problem not in lacking:
                taken = explain(problem, **_choice(config)).choice is not None
                lacking[problem] = "" if taken else lacks_activation(problem, **_choice(config))
            if words := lacking[problem]:
                why = f"no backend that may be chosen on {problem.device} has {words}"
                plan.sites[place] = replace(site, held=why)
                plan.reasons[site.path] = plan.reasons.get(site.path) or why
                break


def _rounds(site: Site, plan: ModelPlan) -> bool:
    return plan.activation_of(site) not in ("none", "auto")


def _unrounded(site: Site, plan: ModelPlan) -> Refusal:
    return Refusal(
        site.path,
        site.path,
        f"activation {plan.activation_of(site)!r}, and {site.held}",
        "a backend rounds the activations, and none computes with a module that keeps its own code",
        "leave activations in high precision there: an override with activation = 'none'",
        BackendError,
    )


def select_for(problem: Problem, config: Mxfp4Config, known: dict[Problem, Selection]) -> Selection:
    """Select the backend that a config asks for, once for all modules that ask the same.

    Args:
        problem: what is to be computed.
        config: which backend, with which options.
        known: the selections so far, which this one joins.

    Raises:
        BackendError, ConfigError: as `select_backend`.
    """
    if problem not in known:
        known[problem] = select_backend(problem, **_choice(config))
    return known[problem]


def _choice(config: Mxfp4Config) -> dict[str, Any]:
    return {
        "backend": config.backend,
        "fallback": config.fallback,
        "backend_options": config.backend_options,
    }


def _at(problem: Problem, device: str, dtype: torch.dtype) -> Problem:
    return replace(problem, device=Device.of(device), dtype=str(dtype).removeprefix("torch."))


__all__ = [
    "chosen_backends",
    "device_names",
    "hold_other_activations",
    "likely_backends",
    "refused_by_backends",
    "select_for",
]
