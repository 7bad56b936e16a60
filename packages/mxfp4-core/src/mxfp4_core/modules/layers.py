"""Modules that hold MXFP4 weights, for the adapters of engines and for people who build models by hand.

A module is born with canonical buffers, which any loader can fill. ``prepare`` then derives the layout of a
backend and lets go of the canonical bytes, if they are different ones. ``state_dict`` always gives canonical
bytes, and ``load_state_dict`` takes them, into the same device memory as before. The weights are frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend import calls
from mxfp4_core.backend.device import cpu
from mxfp4_core.backend.direct import direct_linear, direct_moe
from mxfp4_core.backend.problem import SILU, Activation, Gate, Problem
from mxfp4_core.backend.routes import Routes
from mxfp4_core.modules.adapted import ChangedExperts, change_of
from mxfp4_core.modules.gradients import Stacks, experts_gradient, held_here, linear_gradient
from mxfp4_core.modules.logical import Absent, Logical
from mxfp4_core.modules.mixed import in_dtype
from mxfp4_core.modules.shortcut import DirectModule


class Mxfp4Linear(DirectModule, nn.Linear):
    """A linear layer: ``y = x @ weight.T + bias``.

    It is a `torch.nn.Linear`, so that libraries which look for linears (peft above all) take it for one.

    Args:
        n: output features.
        k: input features; may end in the middle of a block, which is then padded with zeros.
        bias: whether there is one.
        activation: how a backend is to quantise x.
        profile: name of the profile that makes the bytes.
        format: name of the format of the weights.
        device: where the buffers are; ``meta`` for a loader that fills them later.
        dtype: of the bias.

    Attributes (those of the format ``mxfp4``; another one has a buffer for each of its parts):
        weight: while it is loaded, codes uint8 [n, padded(k)/2]; of a prepared module what a model sees, a float tensor
            [n, k], see `LogicalWeight`. Bytes are had from ``canonical("weight")`` and from ``state_dict()``.
        weight_scale: scales uint8 [n, padded(k)/32], None while a backend holds them in its own layout.
        bias: [n] or None.
        in_features: k, under the name that `torch.nn.Linear` uses; of the whole weight where ranks share it.
        out_features: n, likewise.
    """

    matrices = {"weight": "weight"}  # noqa: RUF012, declared as a class variable by the base class
    weight = Logical("weight")
    weight_scale: Tensor
    bias: Tensor | None  # type: ignore[assignment]  # a buffer, which torch declares as a parameter

    def __init__(
        self,
        n: int,
        k: int,
        *,
        bias: bool = False,
        activation: Activation = "none",
        profile: str = "",
        format: str = "mxfp4",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        problem = Problem(
            op="linear", n=n, k=k, bias=bias, activation=activation, format=format, device=cpu()
        )
        super().__init__(problem, profile, device, dtype)
        self.in_features, self.out_features = k, n

    @classmethod
    def from_weight(cls, weight: MxTensor, bias: Tensor | None = None) -> Self:
        """Build a module around a quantised weight [n, k], without a copy."""
        n, k = weight.shape
        module = cls(
            n, k, bias=bias is not None, profile=weight.profile, format=weight.format.name, device="meta"
        )
        module.fill("weight", weight, bias)
        return module

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., n] for x [..., k], of the dtype that `torch.nn.Linear` gives, also under autocast.

        Floats of another dtype than the module's are rounded to it, with a warning, and the result has that dtype of
        x. The gradient of x is that of the dequantised weight; see ``gradients``.
        """
        if self._changed is not None:
            return in_dtype(self._changed_call, x, self.problem.device, self.dtype)
        if torch.compiler.is_compiling():
            if self._traced and not (x.requires_grad and torch.is_grad_enabled()):
                # It wants torch's compiler, which is slow to import.
                from mxfp4_core.modules import traced

                return traced.linear(x, self._traced, self._buffers)
        elif (run := self._direct_for(x)) is not None:
            return run(x)
        return in_dtype(self._run, x, self.problem.device, self.dtype)

    def _changed_call(self, x: Tensor) -> Tensor:
        return functional.linear(x, cast(Tensor, self.weight), self.bias)

    def _run(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            self._ready()
            packed = self._take("weight").tensors.values()
            return cast(Tensor, linear_gradient(x, self._call, self._preparation, *packed))
        return self._call(x)

    def _make_direct(self) -> Callable[..., Tensor] | None:
        return direct_linear(self._ready(), self._take("weight"), self.problem)

    def _call(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (run := self._direct_for(x)) is not None:
            return run(x)
        return calls.linear(self._ready(), x, self._take("weight"), self.problem)


class Mxfp4Experts(DirectModule):
    """The experts of a MoE layer, without their router. Those without a gate are `Mxfp4UngatedExperts`.

    Args:
        experts: experts whose weights are here.
        n: intermediate size.
        k: hidden size.
        top_k: experts per token.
        gate: the activation, and the order of the gate-up rows.
        bias: whether both weights have one.
        total_experts: experts that the router knows, if more than are here.
        expert_map: int32 [total_experts], index here or -1; needed if there are more.
        activation: how a backend is to quantise x and the intermediate.
        profile: name of the profile that makes the bytes.
        format: name of the format of the weights.
        device: where the buffers are.
        dtype: of the biases.

    Attributes (those of the format ``mxfp4``, as above):
        gate_up_proj: codes uint8 [experts, 2n, padded(k)/2], of a prepared module a float tensor, as above.
        gate_up_proj_scale: scales uint8 [experts, 2n, padded(k)/32], likewise None where a backend holds them.
        gate_up_proj_bias: [experts, 2n] or None.
        down_proj: codes uint8 [experts, k, padded(n)/2], likewise.
        down_proj_scale: scales uint8 [experts, k, padded(n)/32], likewise.
        down_proj_bias: [experts, k] or None.
        is_transposed: the module of the model says of itself that it holds its weights with k before n. peft asks.
    """

    matrices = {"gate_up": "gate_up_proj", "down": "down_proj"}  # noqa: RUF012, as above
    gate_up_proj = Logical("gate_up")
    gate_up_proj_scale: Tensor
    gate_up_proj_bias: Tensor | None
    down_proj = Logical("down")
    down_proj_scale: Tensor
    down_proj_bias: Tensor | None
    expert_map: Tensor | None
    is_transposed: bool = False

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
        format: str = "mxfp4",
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
            format=format,
            device=cpu(),
        )
        super().__init__(problem, profile, device, dtype)
        self.register_buffer("expert_map", expert_map, persistent=False)

    @classmethod
    def kind_for(cls, gate: Gate) -> type[Mxfp4Experts]:
        """Return the class of experts with an activation: their weights are called after what they are."""
        return Mxfp4Experts if gate.gated else Mxfp4UngatedExperts

    def forward(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """Return [..., k] of the dtype of x, for x [..., k] and the router's choice [..., top_k].

        Floats of another dtype and gradients as for `Mxfp4Linear`; ``topk_weights`` have gradients, too. Weights that
        somebody changes for the length of the call are computed with as ``adapted`` says.
        """
        if self._changed is not None:
            return self._changed_call(x, topk_ids, topk_weights)
        if torch.compiler.is_compiling():
            learns = (x.requires_grad or topk_weights.requires_grad) and torch.is_grad_enabled()
            if self._traced and not learns:
                from mxfp4_core.modules import traced  # as above

                return traced.moe(x, topk_ids, topk_weights, self.expert_map, self._traced, self._buffers)
        elif not topk_weights.requires_grad and (direct := self._direct_for(x)) is not None:
            return direct(x, Routes(topk_ids, topk_weights, self.expert_map))
        run = partial(self._run, topk_ids, topk_weights)
        return in_dtype(run, x, self.problem.device, self.dtype, keep=True)

    def _changed_call(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        names = {matrix: name for matrix, name in self.matrices.items() if self.is_changed(matrix)}
        changes = {matrix: change_of(self, name) for matrix, name in names.items()}
        here = held_here(ids.reshape(-1, self.problem.top_k), self.expert_map)
        call = ChangedExperts(self.problem, self._stacks, changes, self.k_first, here, x.dtype)
        if torch.compiler.is_compiling():
            from mxfp4_core.modules import traced  # as above

            return traced.apart(call, x, weights)
        return call(x, weights)

    def _run(self, ids: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        if (x.requires_grad or weights.requires_grad) and torch.is_grad_enabled():
            call = partial(self._call, ids)
            stacks = self._stacks
            return cast(
                Tensor, experts_gradient(x, weights, ids, self.expert_map, self.problem, call, stacks)
            )
        return self._call(ids, x, weights)

    def _call(self, ids: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        routes = Routes(ids, weights, self.expert_map)
        if not torch.compiler.is_compiling() and (run := self._direct_for(x)) is not None:
            return run(x, routes)
        return calls.moe(self._ready(), x, self._take("gate_up"), self._take("down"), routes, self.problem)

    def _make_direct(self) -> Callable[..., Tensor] | None:
        return direct_moe(self._ready(), self._take("gate_up"), self._take("down"), self.problem)

    def _stacks(self) -> Stacks:
        biases = self.biases
        return Stacks(
            self.canonical("gate_up"), self.canonical("down"), biases.get("gate_up"), biases.get("down")
        )


class Mxfp4UngatedExperts(Mxfp4Experts):
    """The same where the activation has no gate, so that the first weight has up rows alone.

    Args: as for `Mxfp4Experts`, with ``gate.gated`` false.

    Attributes (those of the format ``mxfp4``):
        up_proj: codes uint8 [experts, n, padded(k)/2], of a prepared module a float tensor.
        up_proj_scale: scales uint8 [experts, n, padded(k)/32], None where a backend holds them.
        up_proj_bias: [experts, n] or None.
        down_proj: as of `Mxfp4Experts`, with what belongs to it.
    """

    matrices = {"gate_up": "up_proj", "down": "down_proj"}  # noqa: RUF012, as above
    gate_up_proj = Absent()  # code that looks for one would take it for gate and up
    up_proj = Logical("gate_up")
    up_proj_scale: Tensor
    up_proj_bias: Tensor | None


__all__ = ["Mxfp4Experts", "Mxfp4Linear", "Mxfp4UngatedExperts"]
