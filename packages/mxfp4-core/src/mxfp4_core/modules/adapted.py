"""Experts whose weights somebody changes for the length of a call: what is added to them, and its gradient.

The sum is never made where it can be avoided. A frozen MXFP4 weight is dequantised a slice at a time, and what is added
to it, two narrow factors for each expert or a dense tensor, is multiplied beside it. Both are in float32; the first in
bfloat16 on an accelerator where that is exact. Inputs are not rounded as a backend may do it (``activation``).

Only the inputs are kept for the gradient: the forward pass of each expert is repeated for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mxfp4_core.arithmetic.gating import apply_gate
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.modules.gradients import Stacks, WideMatrix


class Change(NamedTuple):
    """What becomes of a weight.

    Attributes:
        tensors: ``lhs`` and ``rhs``, whose product is added; or one tensor that is added, or stands in its place. Each
            has an axis of experts and the axes of the weight as the model sees it.
        scaling: factor of the product.
        whole: the tensor stands in the place of the weight.
    """

    tensors: tuple[Tensor, ...] = ()
    scaling: float = 1.0
    whole: bool = False

    def added(self, x: Tensor, tensors: list[Tensor], *, k_first: bool) -> Tensor:
        """Return the product of x [m, k] with what is added of one expert, in float32."""
        wide = [each.to(torch.float32) for each in tensors]
        if len(wide) == 1:
            return x @ (wide[0] if k_first else wide[0].T)
        lhs, rhs = wide
        return (x @ lhs @ rhs if k_first else x @ rhs.T @ lhs.T) * self.scaling


def change_of(module: nn.Module, name: str) -> Change:
    """Return what the parametrization of a weight does; one that is not known by its attributes is asked for values."""
    steps = cast(Any, module).parametrizations[name]
    only: Any = steps[0] if len(steps) == 1 else None
    if all(hasattr(only, each) for each in ("lhs", "rhs", "scaling")):
        return Change((only.lhs, only.rhs), float(only.scaling))
    if isinstance(getattr(only, "delta_weight", None), Tensor):
        return Change((only.delta_weight,))
    return Change((getattr(module, name),), whole=True)


class _Frozen(torch.autograd.Function):
    """``x @ weight.T`` in float32 for a weight that is dequantised anew for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: WideMatrix) -> Tensor:
        ctx.weight, ctx.k = weight, x.shape[1]
        return weight.forward(x, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.weight.backward(grad, ctx.k), None


@dataclass(frozen=True)
class ChangedExperts:
    """One call of experts with weights that are changed.

    Args:
        problem: of the module.
        stacks: gives the canonical weights; it is asked again for the gradient.
        changes: by weight.
        k_first: the model sees its weights with k before n.
        ids: the experts that the router chose, int64 ``[tokens, top_k]``, below 0 where one is not here.
        dtype: of x.
    """

    problem: Problem
    stacks: Callable[[], Stacks]
    changes: Mapping[Matrix, Change]
    k_first: bool
    ids: Tensor
    dtype: torch.dtype

    def __call__(self, x: Tensor, shares: Tensor) -> Tensor:
        """Return the weighted sum [..., k] in the dtype of x, for x [..., k] and the shares of the router."""
        rows, weights = x.reshape(-1, self.problem.k), shares.reshape(-1, self.problem.top_k)
        tensors = [each for change in self.changes.values() for each in change.tensors]
        made: Tensor = _Call.apply(self, rows, weights, *tensors)  # type: ignore[no-untyped-call]
        return made.view(x.shape)

    def expert(self, stacks: Stacks, index: int, x: Tensor, tensors: list[Tensor]) -> Tensor:
        """Return what one expert makes of x [m, k], in float32; ``tensors`` are those of its changes."""
        left = iter(tensors)

        def product(matrix: Matrix, weight: MxTensor, bias: Tensor | None, value: Tensor) -> Tensor:
            change = self.changes.get(matrix, Change())
            own = [next(left) for _ in change.tensors]
            parts = [] if change.whole else [_frozen(value, WideMatrix.of(weight, index, self.dtype))]
            parts += [change.added(value, own, k_first=self.k_first)] if own else []
            parts += [] if bias is None else [bias[index].to(torch.float32)]
            made = parts[0]
            for part in parts[1:]:
                made = made + part
            return made

        both = product("gate_up", stacks.gate_up, stacks.gate_up_bias, x.to(torch.float32))
        return product("down", stacks.down, stacks.down_bias, apply_gate(both, self.problem.gate))

    def chosen(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield each expert that somebody chose, with the tokens and the places in their choice."""
        for index in self.ids.unique().tolist():
            if index >= 0:
                yield index, *torch.where(self.ids == index)


class _Call(torch.autograd.Function):
    """The sum over the chosen experts, and the gradients of x, of the shares and of what is added to the weights."""

    @staticmethod
    def forward(ctx: Any, call: ChangedExperts, x: Tensor, shares: Tensor, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(x, shares, *tensors)
        stacks, made = call.stacks(), torch.zeros_like(x, dtype=torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            for index, tokens, slots in call.chosen():
                of_expert = call.expert(stacks, index, x[tokens], [each[index] for each in tensors])
                made.index_add_(0, tokens, of_expert * shares[tokens, slots, None].to(torch.float32))
        return made.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, shares, *tensors = ctx.saved_tensors
        call: ChangedExperts = ctx.call
        stacks = call.stacks()
        made = [torch.zeros_like(each, dtype=torch.float32) for each in (x, shares)]
        made += [torch.zeros_like(each) for each in tensors]
        with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
            for index, tokens, slots in call.chosen():
                given = [x[tokens].to(torch.float32), shares[tokens, slots].to(torch.float32)]
                given = [each.detach().requires_grad_() for each in (*given, *(t[index] for t in tensors))]
                out = call.expert(stacks, index, given[0], given[2:]) * given[1][:, None]
                of_x, of_shares, *rest = torch.autograd.grad(out, given, grad[tokens].to(torch.float32))
                made[0].index_add_(0, tokens, of_x)
                made[1][tokens, slots] = of_shares
                for whole, part in zip(made[2:], rest, strict=True):
                    whole[index] = part
        made[:2] = [each.to(like.dtype) for each, like in zip(made, (x, shares), strict=False)]
        return None, *made


def _frozen(x: Tensor, weight: WideMatrix) -> Tensor:
    made: Tensor = _Frozen.apply(x, weight)  # type: ignore[no-untyped-call]
    return made


__all__ = ["Change", "ChangedExperts", "change_of"]
