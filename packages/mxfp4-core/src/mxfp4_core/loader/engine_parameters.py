"""Parameters that an engine sees of a layer whose weights are elsewhere: without memory, or with next to none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mxfp4_core.backend.problem import Matrix
from mxfp4_core.loader.engine_layer import EngineLayer, EnginePlace


def placeholder(place: EnginePlace) -> torch.Tensor:
    """Return what the parameter of a place is before anything is loaded: a tensor without memory."""
    return torch.empty(place.shape, dtype=place.dtype, device="meta")


def register_parameter(
    layer: torch.nn.Module, name: str, tensor: torch.Tensor, **attributes: Any
) -> torch.nn.Parameter:
    """Give a layer of an engine a parameter in the memory of a tensor, and return it.

    Args:
        layer: of the engine.
        name: of the parameter.
        tensor: also without memory.
        attributes: what the engine's loaders look for on a parameter.
    """
    parameter = torch.nn.Parameter(tensor, requires_grad=False)
    vars(parameter).update(attributes)
    layer.register_parameter(name, parameter)
    return parameter


def hollow(tensor: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """Return zeros of the size and dtype of a tensor that take no room: every element is the same number.

    Args:
        tensor: any, also without memory.
        device: of the result; that of the tensor if None.
    """
    return torch.zeros((), dtype=tensor.dtype, device=device or tensor.device).expand(tensor.shape)


def has_memory(tensor: torch.Tensor) -> bool:
    """Return whether an engine has filled a tensor: one of a `placeholder` has no memory, a `hollow` one no room."""
    return not tensor.is_meta and (tensor.numel() < 2 or any(tensor.stride()))


def device_of_new_tensors() -> torch.device:
    """Return where tensors are made that name no device: engines build a model in the context of one."""
    return torch.empty(0).device


def widening(
    own: EngineLayer,
    make: Callable[[], object],
    finish: Callable[[torch.nn.Module], object],
    names: Mapping[Matrix, str],
    biases: Mapping[str, str],
) -> Callable[[torch.nn.Module], None]:
    """Return what is to be done once a layer is loaded that the engine computes by itself, in high precision.

    Args:
        own: the layer of the core, which `widens <EngineLayer>`.
        make: makes the engine's own parameters.
        finish: takes what the engine loaded into the layer.
        names: what the engine calls each weight.
        biases: what it calls each bias, by its name in the module.
    """
    waiting = [make]

    def widen(layer: torch.nn.Module) -> None:
        if waiting:
            finish(layer)
            own.widen(layer, waiting.pop(), names, biases)

    return widen


__all__ = ["device_of_new_tensors", "has_memory", "hollow", "placeholder", "register_parameter", "widening"]
