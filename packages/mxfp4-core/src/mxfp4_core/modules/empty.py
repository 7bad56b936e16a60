"""MXFP4 modules without memory, in the place of a model's own, for a loader to fill."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from mxfp4_core.backend.problem import SILU
from mxfp4_core.config.words import Activation
from mxfp4_core.modules.base import Mxfp4Module
from mxfp4_core.modules.experts import find_gate, top_k_of
from mxfp4_core.modules.held import Mxfp4Held
from mxfp4_core.modules.layers import Mxfp4Experts, Mxfp4Linear
from mxfp4_core.modules.sites import Site


def empty_module(
    model: nn.Module,
    site: Site,
    *,
    activation: Activation = "none",
    profile: str = "",
    format: str = "mxfp4",
    dtype: torch.dtype = torch.bfloat16,
) -> Mxfp4Module:
    """Return the MXFP4 module that takes the place of ``site.module``, on the meta device.

    Args:
        model: the model around it; it knows the number of experts per token.
        site: the module and its weights.
        activation: how a backend is to quantise x.
        profile: name of the profile of the bytes that will come.
        format: name of the format of the weights.
        dtype: of the biases.

    Raises:
        ConfigError: the number of experts per token is not to be found.
    """
    own = dict(site.module.named_parameters(recurse=False))
    module: Mxfp4Module
    if site.held:
        return Mxfp4Held.around(
            site.module,
            site.weights,
            k_first=site.transposed,
            profile=profile,
            format=format,
            device="meta",
        )
    if site.is_experts:
        experts, k, n = site.weights["down_proj"]
        gate = find_gate(site.module) or SILU
        module = Mxfp4Experts.kind_for(gate)(
            experts,
            n,
            k,
            top_k=top_k_of(model, site.path),
            gate=gate,
            bias="down_proj_bias" in own,
            profile=profile,
            format=format,
            device="meta",
            dtype=dtype,
        )
        module.is_transposed = getattr(site.module, "is_transposed", False) is True
    else:
        n, k = site.weights["weight"]
        module = Mxfp4Linear(
            n, k, bias="bias" in own, profile=profile, format=format, device="meta", dtype=dtype
        )
    module.problem, module.k_first = replace(module.problem, activation=activation), site.transposed
    return module


def hold_place(module: Mxfp4Module, site: Site, dtype: torch.dtype) -> None:
    """Give an empty module its weights and biases as a checkpoint in high precision has them, for a loader to look at.

    Engines cast what they read to the dtype of the placeholder and look at its shape, through ``get_parameter``:
    therefore the placeholder of a buffer is a Parameter.
    """
    own = dict(site.module.named_parameters(recurse=False))
    for name in (*site.weights, *module.named_biases):
        placeholder = torch.empty(own[name].shape, dtype=dtype, device="meta")
        module._buffers[name] = nn.Parameter(placeholder, requires_grad=False)


__all__ = ["empty_module", "hold_place"]
