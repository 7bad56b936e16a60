"""Load new weights into a model that computes: into the same device memory, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mxfp4_core.backend import Backend, DeviceQuantizers
from mxfp4_core.errors import ConfigError, LoadError, ShapeError
from mxfp4_core.loader import Key, LoadReport, LoadReportBuilder, LoadSession, QuantTarget
from mxfp4_core.modules import ModelPlan, Mxfp4Module
from mxfp4_transformers.offload import check_at_home
from mxfp4_transformers.places import Place, find_places


def refit(
    model: Any,
    named_tensors: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
    *,
    subset: bool = False,
) -> LoadReport:
    """Give a loaded model other weights of the same shapes, as a trainer sends them after each step.

    The weights are quantised as they come, by the profile that each had, and collected beside those that compute. When
    all are there, the layout of the backend is derived again into the memory of the old one, so that captured graphs
    give the new results. An error leaves the model as it was.

    Args:
        model: loaded by this package, and on the devices where it computes.
        named_tensors: tensors in high precision in any order and on any device, under their names in the checkpoint or
            in the model, or both mixed. An iterator is read once; a tensor may be overwritten when the next is asked
            for.
        subset: accept a part of the weights, for example some experts of a layer; the others stay as they are.

    Returns:
        What was done, as for a load.

    Raises:
        ConfigError: the model was not loaded by this package.
        LoadError: a name has no place in the model, a weight is missing (unless ``subset``), or comes twice.
        ShapeError: a tensor has another shape than the weight that it replaces.
        NonFiniteError: NaN or infinity in a weight, as the config says.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    plan: ModelPlan | None = getattr(quantizer, "plan", None)
    if plan is None or quantizer is None or not plan.weights:
        raise ConfigError(
            f"{type(model).__name__} cannot be refitted",
            seen="no MXFP4 weights of this package",
            rule="refit takes models that were loaded with a quantization_config of mxfp4_transformers",
            fix="load it with mxfp4_transformers.from_pretrained",
        )
    quantizer.check_whole("refitted")
    check_at_home(model, "refitted")
    session = LoadSession(
        quantizer.quantization_config.core,
        quantizers=_quantizers_of(model),
        report=LoadReportBuilder(profile=plan.profile),
    )
    targets: dict[str, QuantTarget] = {}
    for site in plan.sites:
        module = model.get_submodule(site.path)
        targets |= session.bind(module, prefix=site.path, dtype=quantizer.dtype, reason="refit")
    session.begin(subset=subset)
    kept = kept_tensors(model)
    places = find_places(model, plan.weights, kept)
    staged: list[tuple[Place, torch.Tensor]] = []
    seen: dict[str, list[str]] = {}
    pairs = named_tensors.items() if isinstance(named_tensors, Mapping) else named_tensors
    for name, tensor in pairs:
        place = _checked(model, name, tensor, places)
        if place.region is None:
            target = kept[place.parameter]
            # Together with the quantised weights or not at all, so what comes meanwhile waits beside the model.
            staged.append((place, tensor.detach().to(target.device, target.dtype, copy=True)))
            seen.setdefault(place.parameter, []).append(name)
            continue
        values = tensor.detach()
        values = values.transpose(-1, -2) if place.k_first else values
        expert = place.region.experts[0] if values.ndim == 2 and targets[place.parameter].stacked else None
        targets[place.parameter].quantize(values, place.region, key=Key(None, expert, name))
    _check_kept(kept, seen, staged, subset=subset, tied=set(getattr(model, "all_tied_weights_keys", ())))
    session.check()
    return _finished(model, session, kept, staged)


def _quantizers_of(model: nn.Module) -> DeviceQuantizers:
    """Return what quantises on each device: the backends that compute there."""
    backends: dict[str, dict[str, Backend]] = {}
    for module in model.modules():
        if isinstance(module, Mxfp4Module) and module.backend is not None:
            backends.setdefault(str(module.where), {})[module.backend.name] = module.backend
    return DeviceQuantizers({device: list(found.values()) for device, found in backends.items()})


def _finished(
    model: nn.Module,
    session: LoadSession,
    kept: Mapping[str, torch.Tensor],
    staged: list[tuple[Place, torch.Tensor]],
) -> LoadReport:
    """Close the session and write what waits beside the model. Biases are packed with weights, so they come first."""
    biases = {name: (kept[name], kept[name].clone()) for name in kept if _is_bias(model, name)}
    for place, value in staged:
        if place.parameter in biases:
            _write(kept[place.parameter], place, value)
    try:
        report = session.close()
    except BaseException:
        for bias, old in biases.values():
            bias.copy_(old)
        raise
    for place, value in staged:
        if place.parameter not in biases:
            _write(kept[place.parameter], place, value)
    return report


def kept_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return everything that a checkpoint has and that is not quantised, by name."""
    found: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, Mxfp4Module):
            own = module.named_biases
        else:
            own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
            volatile = module._non_persistent_buffers_set
            own |= {k: v for k, v in module.named_buffers(recurse=False) if k not in volatile}
        for name, tensor in own.items():
            found[f"{path}.{name}".lstrip(".")] = tensor.detach()
    return found


def _is_bias(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), Mxfp4Module)


def _write(target: torch.Tensor, place: Place, value: torch.Tensor) -> None:
    if place.index is None:
        target.copy_(value)
    else:
        target.view(-1)[place.index.to(target.device).reshape(-1)] = value.reshape(-1)


def _checked(model: Any, name: str, tensor: torch.Tensor, places: Mapping[str, Place]) -> Place:
    prefix = f"{model.base_model_prefix}."
    spellings = (name, f"{prefix}{name}", name.removeprefix(prefix))
    place = next((places[each] for each in spellings if each in places), None)
    if place is None:
        raise LoadError(
            f"{name} has no place in {type(model).__name__}",
            seen=f"a tensor {list(tensor.shape)}",
            rule="tensors have the names of the checkpoint or of the model",
            fix="send the names that save_pretrained writes, and leave out what the model does not have",
        )
    if tuple(tensor.shape) != place.shape or not tensor.is_floating_point():
        raise ShapeError(
            f"{name} does not fit",
            seen=f"{tensor.dtype} {list(tensor.shape)}",
            rule=f"it replaces a tensor {list(place.shape)} in high precision",
            fix="send tensors of the model that was loaded; for another model, load it",
        )
    return place


def _check_kept(
    kept: Mapping[str, torch.Tensor],
    seen: Mapping[str, list[str]],
    staged: list[tuple[Place, torch.Tensor]],
    *,
    subset: bool,
    tied: set[str],
) -> None:
    """Check that each element of what is in high precision came once."""
    counts: dict[str, int] = {}
    for place, value in staged:
        counts[place.parameter] = counts.get(place.parameter, 0) + value.numel()
    twice = [name for name, count in counts.items() if count > kept[name].numel()]
    short = [name for name in kept if counts.get(name, 0) < kept[name].numel() and name not in tied]
    if twice or (short and not subset):
        names = [f"{name} twice ({', '.join(seen[name])})" for name in twice[:3]] or short[:5]
        raise LoadError(
            "the weights sent are not those of the model",
            seen=", ".join(names) + (" missing" if not twice else ""),
            rule="each weight comes once",
            fix="send all of them; to refresh some only, pass subset=True",
        )


__all__ = ["kept_tensors", "refit"]
