"""Where a model has weights that can be MXFP4: its linears and its stacks of experts.

A stack of experts that can be replaced holds ``gate_up_proj`` and ``down_proj``, has its activation in ``_apply_gate``
and is called with hidden states, the router's choice and its weights (transformers promises that of what it calls
through ``ALL_EXPERTS_FUNCTIONS``). How it orders the rows is read from the module; the activation is tried out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mxfp4_core.backend.problem import Gate
from mxfp4_core.errors import ConfigError
from mxfp4_core.modules.buffers import WeightBuffers

EXPERT_WEIGHTS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Site:
    """One module that holds weights which can be MXFP4.

    Attributes:
        path: its name in the model.
        module: the module, on the meta device.
        weights: logical shapes, k last, by name of the parameter.
        transposed: the module holds its weights with k before n.
        refusal: why it cannot be quantised, empty where it can.
    """

    path: str
    module: nn.Module
    weights: dict[str, tuple[int, ...]]
    transposed: bool = False
    refusal: str = ""

    @property
    def is_experts(self) -> bool:
        """Say whether this is a stack of experts."""
        return "weight" not in self.weights

    @property
    def kind(self) -> str:
        """What a report calls it."""
        return "experts" if self.is_experts else "Linear"

    def name(self, weight: str) -> str:
        """Return the full name of a parameter."""
        return f"{self.path}.{weight}"


def find_sites(model: nn.Module) -> Iterator[Site]:
    """Yield every linear and every stack of experts, in the order of the model."""
    for path, module in model.named_modules():
        if isinstance(module, WeightBuffers):  # an MXFP4 linear is torch's Linear, too
            continue
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Linear):
            odd = type(module) is not nn.Linear
            refusal = f"{type(module).__name__} is a linear with a forward of its own" if odd else ""
            yield Site(path, module, {"weight": tuple(module.weight.shape)}, refusal=refusal)
        elif stacks := {
            name: tuple(p.shape) for name, p in own.items() if p.ndim == 3 and name.endswith("_proj")
        }:
            transposed = bool(getattr(module, "is_transposed", False))
            if transposed:
                stacks = {name: (e, n, k) for name, (e, k, n) in stacks.items()}
            yield Site(path, module, stacks, transposed, _refusal(module, stacks))


def _refusal(module: nn.Module, stacks: dict[str, tuple[int, ...]]) -> str:
    kind = type(module).__name__
    if set(stacks) != set(EXPERT_WEIGHTS) or not hasattr(module, "_apply_gate"):
        wanted = f"{' and '.join(EXPERT_WEIGHTS)}, and their activation in _apply_gate"
        return f"{kind} has {', '.join(stacks)}; experts that can be replaced have {wanted}"
    if getattr(module, "has_post_expert_norm", False) or not getattr(module, "has_gate", True):
        return f"{kind} does more than a gated activation between two weights"
    (experts, rows, k), (_, out, n) = (stacks[name] for name in EXPERT_WEIGHTS)
    if rows != 2 * n or out != k:
        return f"gate_up_proj {[experts, rows, k]} and down_proj {[experts, out, n]} of {kind} do not fit"
    return "" if find_gate(module) is not None else f"the activation of {kind} is none that a backend knows"


def find_gate(module: nn.Module) -> Gate | None:
    """Return the gated activation of a stack of experts, or None where it is none of those that `Gate` describes.

    The candidates are made of the module's own numbers, and each is compared with the module on values that reach
    every branch of it.
    """
    interleaved = not getattr(module, "is_concatenated", True)
    alpha = float(getattr(module, "alpha", None) or 1.0)
    limit = getattr(module, "limit", None) or getattr(module, "swiglu_limit", None)
    limits = [None] if limit is None else [None, float(limit)]
    candidates = [
        Gate(factor, clamp, offset) for factor in {1.0, alpha} for clamp in limits for offset in (0.0, 1.0)
    ]
    tried = torch.linspace(-12, 12, 97, dtype=torch.float64)
    gate, up = (axis.flatten() for axis in torch.meshgrid(tried, tried, indexing="ij"))
    rows = torch.stack((gate, up), -1) if interleaved else torch.stack((gate, up))
    apply: Any = module._apply_gate
    try:
        # One feature for each pair of values: what is gate and what is up is a matter of the last axis.
        given = rows.flatten()[None] if interleaved else torch.cat((gate, up))[None]
        result = apply(given)[0]
    except Exception:  # an activation that needs more than its input is none that we know
        return None
    for each in candidates:
        if torch.allclose(result, _gated(each, gate, up), rtol=1e-6, atol=1e-9):
            return Gate(each.alpha, each.limit, each.up_offset, interleaved)
    return None


def _gated(gate: Gate, g: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    if gate.limit is not None:
        g, u = g.clamp(max=gate.limit), u.clamp(-gate.limit, gate.limit)
    return (u + gate.up_offset) * g * torch.sigmoid(gate.alpha * g)


_TOP_K = (
    "top_k",
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_top_k",
    "moe_topk",
    "num_experts_per_topk",
)


def top_k_of(model: nn.Module, site: Site) -> int:
    """Return the number of experts per token, from the block around the experts or from the model's config.

    Raises:
        ConfigError: neither says it.
    """
    parent = model.get_submodule(site.path.rpartition(".")[0])
    config = getattr(site.module, "config", None) or getattr(model, "config", None)
    holders: list[Any] = [parent, *parent.children(), config]
    for holder in holders:
        for name in _TOP_K:
            value = getattr(holder, name, None)
            if type(value) is int and value > 0:
                return value
    raise ConfigError(
        f"{site.path} cannot be replaced by MXFP4 experts",
        seen=f"no {' or '.join(_TOP_K[:2])} in {type(parent).__name__} and its config",
        rule="the number of experts per token is fixed when a model is loaded",
        fix=f"keep it: ignore=[{site.path!r}]",
    )


__all__ = ["EXPERT_WEIGHTS", "Site", "find_gate", "find_sites", "top_k_of"]
