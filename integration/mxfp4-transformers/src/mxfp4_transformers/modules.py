"""Put MXFP4 modules into a model: empty before the load, checked and counted after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.backend import SILU, Backend, Device, default_problem, select_backend
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.errors import LoadError, Mxfp4Error
from mxfp4_core.loader import LoadReportBuilder
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear, Mxfp4Module
from mxfp4_transformers.plan import Plan
from mxfp4_transformers.sites import Site, find_gate, top_k
from mxfp4_transformers.weights import SCALE


def device_names(device_map: Any) -> list[str]:
    """Return the devices that a ``device_map`` names, or the one that ``"auto"`` begins with."""
    if device_map is None:
        return ["cpu"]
    if isinstance(device_map, str):
        device = Device.current()
        return ["cpu" if device.type == "cpu" else _torch_name(device)]
    values = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    names = [_name_of(value) for value in values]
    return [name for name in dict.fromkeys(names) if name not in ("meta", "disk")]


def _name_of(value: Any) -> str:
    if type(value) is int:
        device = Device.current()
        return f"{_torch_name(device).partition(':')[0]}:{value}"
    name = str(value)
    return name if name in ("cpu", "meta", "disk") or ":" in name else f"{name}:{Device.of(name).index}"


def _torch_name(device: Device) -> str:
    return f"{'cuda' if device.type == 'hip' else device.type}:{device.index}"


def empty_module(
    model: nn.Module, site: Site, config: CoreConfig, profile: str, dtype: torch.dtype
) -> Mxfp4Module:
    """Return the MXFP4 module that takes the place of ``site.module``, on the meta device."""
    own = dict(site.module.named_parameters(recurse=False))
    module: Mxfp4Module
    if site.is_experts:
        experts, k, n = site.weights["down_proj"]
        module = Mxfp4Experts(
            experts,
            n,
            k,
            top_k=top_k(model, site),
            gate=find_gate(site.module) or SILU,
            bias="down_proj_bias" in own,
            profile=profile,
            device="meta",
            dtype=dtype,
        )
    else:
        n, k = site.weights["weight"]
        module = Mxfp4Linear(n, k, bias="bias" in own, profile=profile, device="meta", dtype=dtype)
    module.problem = replace(module.problem, activation=config.activation)
    return module


def hold_place(module: Mxfp4Module, site: Site, dtype: torch.dtype) -> None:
    """Give an empty module its weights as the checkpoint has them, for the loader to look at.

    transformers 5.17 casts what it reads to the dtype of the placeholder. Conversions look at its shape, through
    ``get_parameter``: therefore the placeholder of a buffer is a Parameter.
    """
    own = dict(site.module.named_parameters(recurse=False))
    for name in site.weights:
        placeholder = torch.empty(own[name].shape, dtype=dtype, device="meta")
        module._buffers[name] = nn.Parameter(placeholder, requires_grad=False)


def likely_backends(config: CoreConfig, device_map: Any) -> dict[str, list[Backend]]:
    """Return the backend that an ordinary layer gets on each device; nothing where there is none."""
    found: dict[str, list[Backend]] = {}
    for name in device_names(device_map):
        problem = replace(default_problem(), device=Device.of(name))
        with suppress(Mxfp4Error):
            found[name] = [select_backend(problem, name=config.backend, fallback=config.fallback).backend]
    return found


def check_backends(
    model: nn.Module, config: CoreConfig, devices: Iterable[str], dtype: torch.dtype
) -> dict[str, list[Backend]]:
    """Ask for a backend for every kind of weight on every device, before anything is loaded.

    Returns:
        The backends on each device.

    Raises:
        BackendError: there is none for one of them.
    """
    chosen: dict[str, list[Backend]] = {}
    for name in devices:
        device, text = Device.of(name), str(dtype).removeprefix("torch.")
        found = (module.problem for module in model.modules() if isinstance(module, Mxfp4Module))
        problems = dict.fromkeys(replace(problem, device=device, dtype=text) for problem in found)
        selected = (select_backend(each, name=config.backend, fallback=config.fallback) for each in problems)
        chosen[name] = list({each.backend.name: each.backend for each in selected}.values())
    return chosen


def settle(module: Any, site: Site, plan: Plan) -> None:
    """Check what the loader put into an MXFP4 module, and make it the module's own.

    Raises:
        LoadError: codes or scales are missing, or are something else.
    """
    for part, name in module.matrices.items():
        full = site.name(name)
        weight = plan.weights[full]
        codes, scales = getattr(module, name), getattr(module, f"{name}{SCALE}")
        wanted = ((full, codes, weight.codes_shape), (f"{full}{SCALE}", scales, weight.scales_shape))
        for label, tensor, shape in wanted:
            if tensor.dtype != torch.uint8 or tuple(tensor.shape) != shape or tensor.is_meta:
                raise LoadError(
                    f"{label} was not loaded",
                    seen=f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}",
                    rule=f"a model is loaded when it has torch.uint8 {list(shape)} there",
                    fix="complete the checkpoint, and use the config.json that belongs to it",
                )
        module.fill(part, MxTensor(codes.detach(), scales.detach(), torch.Size(weight.shape), weight.profile))


def widened(module: Any, site: Site, dtype: torch.dtype) -> nn.Module:
    """Return the model's own module with the values of an MXFP4 module."""
    original = site.module
    for part, name in module.matrices.items():
        values = module.canonical(part).dequantize(dtype)
        values = values.transpose(-1, -2).contiguous() if site.transposed else values
        setattr(original, name, nn.Parameter(values, requires_grad=False))
    for name, _ in list(original.named_parameters(recurse=False)):
        if name not in site.weights:
            setattr(original, name, nn.Parameter(getattr(module, name), requires_grad=False))
    return original


def count(builder: LoadReportBuilder, model: nn.Module, plan: Plan, bytes_read: Mapping[str, int]) -> None:
    """Tell a report about every weight of a loaded model."""
    packed = set()
    for site in plan.sites:
        packed.add(site.path)
        weights = [plan.weights[site.name(name)] for name in site.weights]
        module = model.get_submodule(site.path)
        biases = [name for name, _ in site.module.named_parameters(recurse=False) if name not in site.weights]
        rest = sum(getattr(module, name).nbytes for name in biases)
        after = rest + sum(weight.nbytes for weight in weights)
        before = rest + sum(bytes_read.get(weight.name, weight.nbytes) for weight in weights)
        builder.quantised(
            site.path, kind=site.kind, bytes_before=before, bytes_after=after, reason=plan.reasons[site.path]
        )
    counted: set[int] = set()
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if path in packed or not own:
            continue
        reason = plan.reason_of(path, own) or "not a weight"
        nbytes = sum(tensor.nbytes for tensor in own.values() if id(tensor) not in counted)
        counted.update(map(id, own.values()))  # a weight that two modules share is there once
        builder.kept(path, kind=type(module).__name__, reason=reason, nbytes=nbytes)
