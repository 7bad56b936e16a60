"""Where a model has weights that can be MXFP4: its linears and its stacks of experts.

A linear is what multiplies with its weight, see ``products``. A stack of experts that a backend computes with holds
``gate_up_proj`` and ``down_proj``, has its activation in ``_apply_gate`` and is called with hidden states, the router's
choice and its weights: transformers promises that of what it calls through ``ALL_EXPERTS_FUNCTIONS``, and others are
tried out. How it orders the rows is read from the module; the activation is tried out, too. What is derived from a
linear, and any other stack of experts, keeps its own code: see ``held``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from mxfp4_core.modules.buffers import WeightBuffers
from mxfp4_core.modules.experts import EXPERT_WEIGHTS, flat_stacks, stacks_of, why_held
from mxfp4_core.modules.products import product_of


@dataclass(frozen=True)
class Site:
    """One module that holds weights which can be MXFP4.

    Attributes:
        path: its name in the model.
        module: the module, on the meta device.
        weights: logical shapes, k last, by name of the parameter.
        transposed: the module holds its weights with k before n.
        refusal: why it cannot be quantised, empty where it can.
        held: why no backend computes with it, so that its own code does; empty where one does.
    """

    path: str
    module: nn.Module
    weights: dict[str, tuple[int, ...]]
    transposed: bool = False
    refusal: str = ""
    held: str = ""

    @property
    def is_experts(self) -> bool:
        """Say whether this is a stack of experts."""
        return any(len(shape) == 3 for shape in self.weights.values())

    @property
    def kind(self) -> str:
        """What a report calls it."""
        return "experts" if self.is_experts else "Linear"

    def name(self, weight: str) -> str:
        """Return the full name of a parameter."""
        return f"{self.path}.{weight}" if self.path else weight


def find_sites(model: nn.Module) -> Iterator[Site]:
    """Yield every linear and every stack of experts, in the order of the model."""
    for path, module in model.named_modules():
        if isinstance(module, WeightBuffers):  # an MXFP4 linear is torch's Linear, too
            continue
        product = product_of(module)
        if product is not None or isinstance(module, nn.Linear):
            yield _linear(path, module, k_first=product == "k first", plain=product is not None)
            continue
        parent = model.get_submodule(path.rpartition(".")[0])
        if found := stacks_of(module, parent):
            yield Site(path, module, found.shapes, found.k_first, held=why_held(module, found))
        elif flat := flat_stacks(module, parent):
            why = f"{type(module).__name__} holds its experts one below the other, so that blocks would run across them"
            yield Site(path, module, flat, refusal=why)


def _linear(path: str, module: nn.Module, *, k_first: bool, plain: bool) -> Site:
    weight = module._parameters.get("weight")
    first, second = (0, 0) if weight is None or weight.ndim != 2 else weight.shape
    shapes: dict[str, tuple[int, ...]] = {"weight": (second, first) if k_first else (first, second)}
    kind = type(module).__name__
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        what = "no weight of its own" if weight is None else f"a weight {weight.dtype} {list(weight.shape)}"
        return Site(path, module, shapes, k_first, refusal=f"{kind} has {what}")
    return Site(
        path, module, shapes, k_first, held="" if plain else f"{kind} is more than a product with its weight"
    )


__all__ = ["EXPERT_WEIGHTS", "Site", "find_sites"]
