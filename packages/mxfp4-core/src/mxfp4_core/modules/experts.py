"""Stacks of experts: which parameters they are, whether a backend computes what they do, and with which activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn
from torch.nn import functional

from mxfp4_core.arithmetic.gate import Function, Gate
from mxfp4_core.arithmetic.gating import apply_gate
from mxfp4_core.errors import ConfigError
from mxfp4_core.modules.products import small_copy, wave

EXPERT_WEIGHTS = ("gate_up_proj", "down_proj")
UNGATED_WEIGHTS = ("up_proj", "down_proj")
QUICK_GELU = 1.702
"""The factor in the sigmoid that makes SiLU quick GELU."""


@dataclass(frozen=True)
class Stacks:
    """The stacks of one module.

    Attributes:
        shapes: logical shapes ``[experts, n, k]`` by name.
        k_first: the module holds ``[experts, k, n]``.
    """

    shapes: dict[str, tuple[int, ...]]
    k_first: bool


def stacks_of(module: nn.Module, parent: nn.Module) -> Stacks | None:
    """Return the parameters of a module that hold a matrix for each expert, or None where it has none.

    Args:
        module: any.
        parent: the module around it, which may be the one that knows the number of experts.
    """
    found = {
        name: tuple(each.shape)
        for name, each in module.named_parameters(recurse=False)
        if each.ndim == 3 and min(each.shape) > 0 and each.is_floating_point()
    }
    counts = {*_counts(module), *_counts(parent)} - {0, 1}
    found = {name: shape for name, shape in found.items() if name.endswith("_proj") or shape[0] in counts}
    if not found:
        return None
    k_first = _k_first(module, found)
    return Stacks({n: (e, b, a) if k_first else (e, a, b) for n, (e, a, b) in found.items()}, k_first)


def flat_stacks(module: nn.Module, parent: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the parameters that hold the matrices of all experts one below the other, ``[experts * n, k]``.

    Args:
        module: any.
        parent: the module around it.
    """
    counts = {*_counts(module), *_counts(parent)} - {0, 1}
    found = {
        name: tuple(each.shape)
        for name, each in module.named_parameters(recurse=False)
        if each.ndim == 2 and any(each.shape[0] > e and each.shape[0] % e == 0 for e in counts)
    }
    return found if len(found) > 1 else {}


def _counts(module: nn.Module) -> list[int]:
    """Return the numbers of experts that a module may have, by what it says itself."""
    return [value for name, value in vars(module).items() if "expert" in name and type(value) is int]


def _k_first(module: nn.Module, found: dict[str, tuple[int, ...]]) -> bool:
    """Say whether k is before n: the module says it, or the sizes of what goes in and comes back do."""
    said = getattr(module, "is_transposed", None)
    if isinstance(said, bool):
        return said
    if set(found) != set(EXPERT_WEIGHTS):
        return False
    (_, first, second), (_, n, k) = found["gate_up_proj"], found["down_proj"]
    return first == k and second == 2 * n


def why_held(module: nn.Module, stacks: Stacks) -> str:
    """Return why no backend computes with a stack of experts, empty where one may."""
    kind, shapes, gated = type(module).__name__, stacks.shapes, _is_gated(module)
    names = EXPERT_WEIGHTS if gated else UNGATED_WEIGHTS
    if set(shapes) != set(names) or not hasattr(module, "_apply_gate" if gated else "act_fn"):
        return f"{kind} is called in a way of its own"
    if getattr(module, "has_post_expert_norm", False):
        return f"{kind} does more than an activation between two weights"
    (experts, rows, k), (others, out, n) = (shapes[name] for name in names)
    if (rows, out, experts) != (2 * n if gated else n, k, others):
        return f"{names[0]} {[experts, rows, k]} and down_proj {[others, out, n]} of {kind} are no pair"
    if (gate := find_gate(module)) is None:
        return f"the activation of {kind} is none that a backend knows"
    promised = hasattr(module, "is_transposed") and hasattr(module, "has_gate")
    return "" if promised or _computes(module, gate, stacks) else f"{kind} is called in a way of its own"


def plain_forward(own: type[nn.Module]) -> Callable[..., Any]:
    """Return the forward of a class; of experts that a library lets others compute, the one that they came with.

    That one computes an expert at a time; those of libraries ask for stacks as a whole.
    """
    forward: Callable[..., Any] = own.forward
    return getattr(forward, "__wrapped__", forward) if hasattr(own, "_apply_gate") else forward


def _computes(module: nn.Module, gate: Gate, stacks: Stacks) -> bool:
    """Compare a copy of experts, with small weights, with what a backend computes."""
    experts, k, n = stacks.shapes["down_proj"]
    names = EXPERT_WEIGHTS if gate.gated else UNGATED_WEIGHTS
    small = {n: 5, gate.rows * n: 5 * gate.rows}
    small |= {size: small.get(size, new) for size, new in ((k, 7), (experts, 3))}
    e, k, n, rows = small[experts], small[k], 5, 5 * gate.rows
    own = module._parameters
    up, down = wave(e * rows * k).view(e, rows, k), wave(e * k * n).view(e, k, n)
    sizes = (rows, k)
    biases = {f"{name}_bias": wave(e * size).view(e, size) for name, size in zip(names, sizes, strict=True)}
    biases = {name: bias for name, bias in biases.items() if own.get(name) is not None}
    turn = stacks.k_first
    given = {
        name: weight.transpose(1, 2).contiguous() if turn else weight
        for name, weight in zip(names, (up, down), strict=True)
    }
    if own.keys() - given.keys() - biases.keys() or module._buffers:
        return False
    x, ids = wave(4 * k).view(4, k), torch.tensor([[0, 1], [1, 0], [e - 1, 0], [1, e - 1]], device="cpu")
    shares = wave(8).abs().view(4, 2)
    wanted = torch.zeros_like(x)
    for token, slot in ((token, slot) for token in range(4) for slot in range(2)):
        expert = int(ids[token, slot])
        both = up[expert] @ x[token] + biases.get(f"{names[0]}_bias", up.new_zeros(e, rows))[expert]
        inner = functional.linear(apply_gate(both, gate), down[expert])
        inner = inner + biases.get("down_proj_bias", up.new_zeros(e, k))[expert]
        wanted[token] += inner * shares[token, slot]
    try:
        with torch.no_grad():
            found = plain_forward(type(module))(
                small_copy(module, {**given, **biases}, small), x, ids, shares
            )
    except Exception:  # it wants something else than what backends get
        return False
    return (
        isinstance(found, torch.Tensor)
        and found.shape == x.shape
        and torch.allclose(found, wanted, 1e-5, 1e-5)
    )


def find_gate(module: nn.Module) -> Gate | None:
    """Return the activation of a stack of experts, or None where it is none of those that `Gate` describes.

    The candidates are made of the module's own numbers, and each is compared with the module on values that reach
    every branch of it.
    """
    tried = torch.linspace(-12, 12, 97, dtype=torch.float64, device="cpu")
    given, gated = tried[None], _is_gated(module)
    if gated:
        gate, up = (axis.flatten() for axis in torch.meshgrid(tried, tried, indexing="ij"))
        # One feature for each pair of values: what is gate and what is up is a matter of the last axis.
        pairs = torch.stack((gate, up), -1).flatten() if _alternates(module) else torch.cat((gate, up))
        given = pairs[None]
    apply: Any = module._apply_gate if gated else getattr(module, "act_fn", None)
    try:
        result = apply(given)
    except Exception:  # an activation that needs more than its input is none that we know
        return None
    for each in _candidates(module, gated):
        if torch.allclose(result, apply_gate(given, each), rtol=1e-6, atol=1e-9):
            return each
    return None


def _is_gated(module: nn.Module) -> bool:
    said = getattr(module, "has_gate", None)
    return said if isinstance(said, bool) else UNGATED_WEIGHTS[0] not in module._parameters


def _alternates(module: nn.Module) -> bool:
    return not getattr(module, "is_concatenated", True)


def _candidates(module: nn.Module, gated: bool) -> Iterator[Gate]:
    """Yield what the activation of a module may be, the likely first."""
    alphas = dict.fromkeys((1.0, float(getattr(module, "alpha", None) or 1.0), QUICK_GELU))
    limit = getattr(module, "limit", None) or getattr(module, "swiglu_limit", None)
    limits = [None] if limit is None or not gated else [None, float(limit)]
    functions = [(function, 1.0) for function in get_args(Function) if function != "silu"]
    for function, alpha in [*(("silu", alpha) for alpha in alphas), *functions]:
        for clamp in limits:
            for offset in (0.0, 1.0) if gated else (0.0,):
                yield Gate(alpha, clamp, offset, gated and _alternates(module), function, gated)


_TOP_K = (
    "top_k",
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_top_k",
    "moe_topk",
    "num_experts_per_topk",
    "top_k_experts",
)


def top_k_of(model: nn.Module, path: str) -> int:
    """Return the number of experts per token, from the block around the experts or from the model's config.

    Raises:
        ConfigError: neither says it.
    """
    parent = model.get_submodule(path.rpartition(".")[0])
    config = getattr(model.get_submodule(path), "config", None) or getattr(model, "config", None)
    holders: list[Any] = [parent, *parent.children(), config]
    for holder in holders:
        for name in _TOP_K:
            value = getattr(holder, name, None)
            if type(value) is int and value > 0:
                return value
    raise ConfigError(
        f"{path} cannot be replaced by MXFP4 experts",
        seen=f"no {' or '.join(_TOP_K[:2])} in {type(parent).__name__} and its config",
        rule="the number of experts per token is fixed when a model is loaded",
        fix=f"keep it: ignore=[{path!r}]",
    )


__all__ = [
    "EXPERT_WEIGHTS",
    "UNGATED_WEIGHTS",
    "Stacks",
    "find_gate",
    "flat_stacks",
    "plain_forward",
    "stacks_of",
    "top_k_of",
    "why_held",
]
