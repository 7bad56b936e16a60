"""Modules that compute with a part of their weights: what transformers must see of them, and what runs around them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mxfp4_core.modules import ModelPlan, Mxfp4Experts, Mxfp4Module, Site, empty_module, hold_place, settle
from mxfp4_transformers import compat
from mxfp4_transformers.adapters import ADAPTED, no_adapter
from mxfp4_transformers.sharding import Ranks, Share, local_site, shares_of


def place_empty(model: Any, plan: ModelPlan, ranks: Ranks | None, dtype: torch.dtype) -> dict[str, Share]:
    """Put MXFP4 modules, still empty, where weights are to be loaded, and return what this process holds of them.

    Args:
        model: on the meta device.
        plan: which modules, and what they become.
        ranks: the processes that share the model; None: this one has it alone.
        dtype: of the model.

    Raises:
        ShapeError, ConfigError: as `shares_of`.
    """
    shares = {} if ranks is None else shares_of(plan, ranks)
    for site in plan.sites:
        module = empty_module(
            model,
            local_site(site, shares),
            activation=plan.activation_of(site),
            profile=plan.profile_of(site),
            format=plan.format_of(site),
            dtype=dtype,
        )
        hold_place(module, site, dtype)
        if ranks is not None:
            set_out(module, site, shares)
        model.set_submodule(site.path, module)
    return shares


def settle_all(model: Any, plan: ModelPlan, ranks: Ranks | None, shares: Mapping[str, Share]) -> None:
    """Check what was loaded into the modules of `place_empty`, and make it their own.

    Raises:
        LoadError: a part is missing, or is something else.
    """
    local = plan.weights | {name: share.local for name, share in shares.items()}
    for site in plan.sites:
        settle(module := model.get_submodule(site.path), site, local)
        if ranks is not None:
            settle_in(model, module, site, shares, ranks)


def set_out(module: Mxfp4Module, site: Site, shares: Mapping[str, Share]) -> None:
    """Make an empty module, which has the sizes of this process, such that transformers spreads it.

    Biases become parameters of their whole size, which transformers cuts like any other; `settle_in` takes them back.

    Args:
        module: takes the place of ``site.module``, the model's own.
        site: with the sizes of the whole weights.
        shares: what lies here, of the weights that are cut.
    """
    if site.held:  # what it has beside its weights are parameters already
        return
    own = dict(site.module.named_parameters(recurse=False))
    for name in module.named_biases:
        module._buffers.pop(name)
        bias = own[name]
        module._parameters[name] = nn.Parameter(torch.empty_like(bias, device="meta"), requires_grad=False)
    if isinstance(module, Mxfp4Experts):
        count = module.problem.experts
        module.num_experts = count
        if count < site.weights["down_proj"][0]:
            # transformers gives the experts of other processes the number behind the last one here.
            module.problem = replace(module.problem, total_experts=count + 1)
            module.forward = functools.partial(_few, module)  # type: ignore[method-assign]
    else:
        n, k = site.weights["weight"]
        module.in_features, module.out_features = k, n
        # transformers calls a module of this kind with what lies here, and not with a DTensor.
        module._hf_quantized_needs_local_tp = any(site.name(name) in shares for name in site.weights)


def _few(module: Mxfp4Experts, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Call experts with at most as many slots as they have: tokens that other processes sent come with one each."""
    slots = module.problem.top_k - ids.shape[-1]
    if slots:
        ids, weights = functional.pad(ids, (0, slots), value=-1), functional.pad(weights, (0, slots))
    return type(module).forward(module, x, ids, weights)


def settle_in(model: Any, module: Mxfp4Module, site: Site, shares: Mapping[str, Share], ranks: Ranks) -> None:
    """Take the biases back and let the module compute its part, after a load.

    Args:
        model: around it; it knows the processes.
        module: loaded.
        site: as for `set_out`.
        shares: likewise.
        ranks: likewise.
    """
    if site.held:
        return
    summed = any(share.cols[1] - share.cols[0] < share.whole.shape[-1] for share in shares_at(site, shares))
    for name in list(module._parameters):
        bias = compat.local(module._parameters.pop(name))
        if summed and name in ("bias", "down_proj_bias") and ranks.rank:
            bias = torch.zeros_like(bias)  # every process adds its part of the product, and one the bias
        module.register_buffer(name, bias.detach())
    if shares_at(site, shares):
        style = ranks.styles.get(site.path, "")
        if isinstance(module, Mxfp4Experts) or style not in ADAPTED:
            module.refused = {"_hf_tp_plan": functools.partial(no_adapter, site.path, style)}
        else:
            module.whole = {"weight": site.weights["weight"]}
    if not isinstance(module, Mxfp4Experts) or not list(shares_at(site, shares)):
        return
    count = module.problem.experts
    if module.problem.total_experts > count:
        numbers = torch.arange(count + 1, dtype=torch.int32, device=module.where)
        module.expert_map = torch.where(numbers < count, numbers, -1)
    if (group := compat.group_to_sum(model, site.path, ranks.styles)) is not None:
        run = functools.partial(_few, module) if module.expert_map is not None else None
        run = run or functools.partial(type(module).forward, module)
        module.forward = functools.partial(_summed, run, group)  # type: ignore[method-assign]


def shares_at(site: Site, shares: Mapping[str, Share]) -> list[Share]:
    """Return the shares of the weights of one site."""
    return [shares[site.name(name)] for name in site.weights if site.name(name) in shares]


def _summed(run: Any, group: Any, x: Any, ids: torch.Tensor, weights: Any) -> torch.Tensor:
    """Sum what all processes make of the same tokens, and in the backward pass what each finds of the gradients."""
    x, weights = (compat.summed_backward(compat.local(each), group) for each in (x, weights))
    return compat.summed(run(x, ids, weights), group)


__all__ = ["place_empty", "set_out", "settle_all", "settle_in", "shares_at"]
