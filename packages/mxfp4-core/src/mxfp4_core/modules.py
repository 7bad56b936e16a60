"""Modules that hold MXFP4 weights, for the adapters of engines and for people who build models by hand.

A module is born with canonical buffers, which any loader can fill. ``prepare`` then derives the layout of a
backend and lets go of the canonical bytes, if they are different ones. ``state_dict`` always gives canonical
bytes, and ``load_state_dict`` takes them, into the same device memory as before. The weights are frozen.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Self

import torch
from torch import Tensor, nn

from mxfp4_core import calls
from mxfp4_core.backend import SILU, Activation, Gate, Problem
from mxfp4_core.device import cpu
from mxfp4_core.prepared import Mxfp4Module
from mxfp4_core.select import Selection, select_backend
from mxfp4_core.tensor import MxTensor

_LOG = logging.getLogger("mxfp4_core.modules")


class Mxfp4Linear(Mxfp4Module):
    """A linear layer: ``y = x @ weight.T + bias``.

    Args:
        n: output features.
        k: input features; may end in the middle of a block, which is then padded with zeros.
        bias: whether there is one.
        activation: how a backend is to quantise x.
        profile: name of the profile that makes the bytes.
        device: where the buffers are; ``meta`` for a loader that fills them later.
        dtype: of the bias.

    Attributes:
        weight: codes uint8 [n, padded(k)/2], None while a backend holds them in its own layout.
        weight_scale: scales uint8 [n, padded(k)/32], likewise.
        bias: [n] or None.
    """

    parts = {"weight": "weight"}  # noqa: RUF012, declared as a class variable by the base class
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        n: int,
        k: int,
        *,
        bias: bool = False,
        activation: Activation = "none",
        profile: str = "",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        problem = Problem(op="linear", n=n, k=k, bias=bias, activation=activation, device=cpu())
        super().__init__(problem, profile, device, dtype)

    @classmethod
    def from_weight(cls, weight: MxTensor, bias: Tensor | None = None) -> Self:
        """Build a module around a quantised weight [n, k], without a copy."""
        n, k = weight.shape
        module = cls(n, k, bias=bias is not None, profile=weight.profile, device="meta")
        module.fill("weight", weight, bias)
        return module

    @property
    def in_features(self) -> int:
        """Input features k, under the name that ``torch.nn.Linear`` uses."""
        return self.problem.k

    @property
    def out_features(self) -> int:
        """Output features n, under the name that ``torch.nn.Linear`` uses."""
        return self.problem.n

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., n] for x [..., k]."""
        return calls.linear(self._ready(), x, self._take("weight"), self.problem)


class Mxfp4Experts(Mxfp4Module):
    """The experts of a MoE layer, without their router.

    Args:
        experts: experts whose weights are here.
        n: intermediate size.
        k: hidden size.
        top_k: experts per token.
        gate: the gated activation, and the order of the gate-up rows.
        bias: whether both weights have one.
        total_experts: experts that the router knows, if more than are here.
        expert_map: int32 [total_experts], index here or -1; needed if there are more.
        activation: how a backend is to quantise x and the intermediate.
        profile: name of the profile that makes the bytes.
        device: where the buffers are.
        dtype: of the biases.

    Attributes:
        gate_up_proj: codes uint8 [experts, 2n, padded(k)/2], None while a backend holds them in its own
            layout.
        gate_up_proj_scale: scales uint8 [experts, 2n, padded(k)/32], likewise.
        gate_up_proj_bias: [experts, 2n] or None.
        down_proj: codes uint8 [experts, k, padded(n)/2], likewise.
        down_proj_scale: scales uint8 [experts, k, padded(n)/32], likewise.
        down_proj_bias: [experts, k] or None.
    """

    parts = {"gate_up": "gate_up_proj", "down": "down_proj"}  # noqa: RUF012, as above
    gate_up_proj: Tensor
    gate_up_proj_scale: Tensor
    gate_up_proj_bias: Tensor | None
    down_proj: Tensor
    down_proj_scale: Tensor
    down_proj_bias: Tensor | None
    expert_map: Tensor | None

    def __init__(
        self,
        experts: int,
        n: int,
        k: int,
        *,
        top_k: int,
        gate: Gate = SILU,
        bias: bool = False,
        total_experts: int = 0,
        expert_map: Tensor | None = None,
        activation: Activation = "none",
        profile: str = "",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        problem = Problem(
            op="moe",
            n=n,
            k=k,
            experts=experts,
            total_experts=total_experts,
            top_k=top_k,
            gate=gate,
            bias=bias,
            activation=activation,
            device=cpu(),
        )
        super().__init__(problem, profile, device, dtype)
        self.register_buffer("expert_map", expert_map, persistent=False)

    def forward(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """Return [..., k] for x [..., k] and the router's choice [..., top_k]."""
        return calls.moe(
            self._ready(),
            x,
            *(self._take("gate_up"), self._take("down")),
            *(topk_ids, topk_weights),
            self.problem,
            self.expert_map,
        )


def prepare_model(
    model: nn.Module,
    *,
    name: str | None = None,
    fallback: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    consume: bool = False,
) -> dict[str, Selection]:
    """Select a backend for every MXFP4 module of a model and prepare it.

    The choice is logged once for each distinct problem, as a warning where it is the fallback.

    Args:
        model: with loaded weights, on the device where it will run.
        name: as in ``select_backend``.
        fallback: as in ``select_backend``.
        dtype: of the activations.
        consume: as in ``Mxfp4Module.prepare``; bytes that several modules of the model share are kept from it.

    Returns:
        The selection for each module, by its name; modules that ask the same share one.

    Raises:
        BackendError: no backend for one of the modules; nothing was prepared then.
    """
    modules = {key: module for key, module in model.named_modules() if isinstance(module, Mxfp4Module)}
    answers: dict[Problem, Selection] = {}
    chosen: dict[str, Selection] = {}
    for key, module in modules.items():
        problem = module.question(dtype)
        if problem not in answers:
            answer = answers[problem] = select_backend(problem, name=name, fallback=fallback)
            level = logging.WARNING if answer.fallback else logging.INFO
            _LOG.log(level, "%s runs %s: %s", answer.backend.name, problem, answer.reason)
        chosen[key] = answers[problem]
    users = Counter(place for module in modules.values() for place in set(_places(module)))
    for key, module in modules.items():
        alone = all(users[place] == 1 for place in _places(module))
        module.prepare(chosen[key].backend, dtype=dtype, consume=consume and alone)
    return chosen


def _places(module: Mxfp4Module) -> list[int]:
    """Return the addresses of the canonical bytes that a module holds."""
    names = (f"{name}{end}" for name in module.parts.values() for end in ("", "_scale"))
    return [tensor.data_ptr() for name in names if (tensor := module._buffers.get(name)) is not None]


__all__ = ["Mxfp4Experts", "Mxfp4Linear", "Mxfp4Module", "prepare_model"]
