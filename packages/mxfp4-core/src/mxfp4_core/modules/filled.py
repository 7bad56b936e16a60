"""MXFP4 modules after a load: check and keep what arrived, or go back to the model's own modules."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.errors import LoadError
from mxfp4_core.modules.base import Mxfp4Module
from mxfp4_core.modules.held import Mxfp4Held
from mxfp4_core.modules.sites import Site
from mxfp4_core.modules.weights import Weight


def settle(module: Mxfp4Module, site: Site, weights: Mapping[str, Weight]) -> None:
    """Check what a loader put into an MXFP4 module, and make it the module's own.

    Args:
        module: its buffers have been assigned, under the names of the parts.
        site: the module that it replaces.
        weights: what is expected, by full name of the weight.

    Raises:
        LoadError: a part is missing, or is something else.
    """
    for matrix, name in module.matrices.items():
        weight = weights[site.name(name)]
        parts: dict[str, torch.Tensor] = {}
        for part in weight.kind.parts:
            tensor, shape = module.stored(f"{name}{part.suffix}"), weight.shapes[part.name]
            dtype: torch.dtype = getattr(torch, part.dtype)
            if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.is_meta:
                raise LoadError(
                    f"{weight.names[part.name]} was not loaded",
                    seen="nothing"
                    if tensor is None
                    else f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}",
                    rule=f"a model is loaded when it has {dtype} {list(shape)} there",
                    fix="complete the checkpoint, and use the config.json that belongs to it",
                )
            parts[part.name] = tensor.detach()
        module.fill(matrix, MxTensor.from_parts(weight.kind, parts, weight.shape, weight.profile))


def widened(module: Mxfp4Module, site: Site, dtype: torch.dtype) -> nn.Module:
    """Return the model's own module with the values of an MXFP4 module."""
    original = site.module
    if isinstance(module, Mxfp4Held):  # what is beside its weights was loaded there
        original._modules.update(module._modules)
        original._buffers.update({name: module._buffers[name] for name in original._buffers})
    for matrix, name in module.matrices.items():
        values = module.canonical(matrix).dequantize(dtype)
        values = values.transpose(-1, -2).contiguous() if site.transposed else values
        setattr(original, name, nn.Parameter(values, requires_grad=False))
    for name, _ in list(original.named_parameters(recurse=False)):
        if name not in site.weights:
            setattr(original, name, nn.Parameter(getattr(module, name), requires_grad=False))
    return original


__all__ = ["settle", "widened"]
