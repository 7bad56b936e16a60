"""The gradient of what goes into an MXFP4 module: its weights are dequantised, and stay as they are.

It is the core's, and the same for every backend: that of the product with the dequantised weight, for x and for the
weights of the router. Where a backend rounds its input (``activation``), the gradient passes through the rounding as if
it were none (straight-through). Weights are widened a slice at a time, in float32, or in bfloat16 on an accelerator
where x is bfloat16 and the weight is exact in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.arithmetic.gating import apply_gate
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend import calls
from mxfp4_core.backend.problem import Problem
from mxfp4_core.modules.preparation import recall

_SLICE_ELEMS = 1 << 24  # values of a weight that are widened at a time: 64 MiB of float32
_EXACT = "mxfp4"  # an E2M1 value times a power of two is a bfloat16 value


class LinearGradient(torch.autograd.Function):
    """``run(x)``, whose gradient is that of ``x @ weight.T``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor], text: str, *packed: Tensor) -> Tensor:
        """Compute ``run(x)``; ``text`` is of the preparation of the weight, and ``packed`` are its tensors."""
        ctx.text = text
        ctx.save_for_backward(*packed)
        return _own(run(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of x."""
        packed = ctx.saved_tensors
        return _linear(list(packed), grad, ctx.text), None, None, *[None] * len(packed)


class Stacks(NamedTuple):
    """The weights of experts.

    Attributes:
        gate_up: canonical [experts, 2n, k], without a gate [experts, n, k].
        down: canonical [experts, k, n].
        gate_up_bias: [experts, 2n] or None, likewise.
        down_bias: [experts, k] or None.
    """

    gate_up: MxTensor
    down: MxTensor
    gate_up_bias: Tensor | None
    down_bias: Tensor | None


class ExpertsGradient(torch.autograd.Function):
    """``run(x, weights)``, whose gradients are those of the weighted sum over the chosen experts."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        ids: Tensor,
        expert_map: Tensor | None,
        problem: Problem,
        run: Callable[[Tensor, Tensor], Tensor],
        stacks: Callable[[], Stacks],
    ) -> Tensor:
        """Compute; ``stacks()`` gives the canonical weights when the gradients are asked for."""
        ctx.save_for_backward(x, weights, ids, expert_map)
        ctx.problem, ctx.stacks = problem, stacks
        return _own(run(x, weights))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the weights of the router."""
        x, weights, ids, expert_map = ctx.saved_tensors
        problem: Problem = ctx.problem
        stacks: Stacks = ctx.stacks()
        ids = held_here(ids.reshape(-1, problem.top_k), expert_map)
        rows, grads = x.reshape(-1, problem.k), grad.reshape(-1, problem.k).to(torch.float32)
        share = weights.reshape(-1, problem.top_k).to(torch.float32)
        of_x = rows.new_zeros(rows.shape, dtype=torch.float32)
        of_share = torch.zeros_like(share)
        for expert in ids.unique().tolist():
            if expert < 0:
                continue
            tokens, slots = torch.where(ids == expert)
            given, inner = _expert(stacks, expert, rows[tokens], grads[tokens], share[tokens, slots], problem)
            of_x.index_add_(0, tokens, given)
            of_share[tokens, slots] = inner
        return of_x.to(x.dtype).view(x.shape), of_share.to(weights.dtype).view(weights.shape), *[None] * 5


def held_here(ids: Tensor, expert_map: Tensor | None) -> Tensor:
    """Return the index here of each expert that a router chose, int64, below 0 where it is not here."""
    ids = ids.long()
    return ids if expert_map is None else torch.where(ids < 0, ids, expert_map[ids.clamp(min=0)].long())


def _own(made: Tensor) -> Tensor:
    """Return a result that may be changed in place, as adapters do: autograd forbids that to a view made in here.

    What is compiled has no views left, and no way to ask.
    """
    return made.clone() if not torch.compiler.is_compiling() and made._is_view() else made


def _expert(
    stacks: Stacks, expert: int, x: Tensor, grad: Tensor, share: Tensor, problem: Problem
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the rows x [m, k] of one expert, and of their shares [m]."""
    up, down = (WideMatrix.of(each, expert, x.dtype) for each in (stacks.gate_up, stacks.down))
    biases = stacks.gate_up_bias, stacks.down_bias
    first, second = (None if bias is None else bias[expert].to(torch.float32) for bias in biases)
    with torch.enable_grad():
        both = up.forward(x, first).requires_grad_()
        hidden = apply_gate(both, problem.gate)
    of_share = (down.forward(hidden.detach(), second) * grad).sum(1)
    of_hidden = down.backward(grad * share[:, None], problem.n)
    (of_both,) = torch.autograd.grad(hidden, both, of_hidden)
    return up.backward(of_both, problem.k), of_share


class WideMatrix(NamedTuple):
    """One weight [n, k], padded, to multiply with a slice of its rows at a time.

    Attributes:
        parts: by name.
        format: of the weight.
        dtype: of x.
    """

    parts: Mapping[str, Tensor]
    format: Format
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: MxTensor, expert: int, dtype: torch.dtype) -> WideMatrix:
        """Return the weight of one expert of a stack."""
        parts = {
            part.name: weight.parts[part.name] if part.operand == "input" else weight.parts[part.name][expert]
            for part in weight.format.parts
        }
        return cls(parts, weight.format, dtype)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias`` in float32, for x [m, k]."""
        x = functional.pad(x.to(torch.float32), (0, self._k - x.shape[1]))
        x = x if self._scale is None else x * self._scale
        made = [(x.to(wide.dtype) @ wide.T).to(torch.float32) for _, wide in self._slices()]
        return torch.cat(made, 1) if bias is None else torch.cat(made, 1) + bias

    def backward(self, grad: Tensor, k: int) -> Tensor:
        """Return ``grad @ weight`` in float32, its first k columns, for grad [m, n]."""
        out = grad.new_zeros((grad.shape[0], self._k), dtype=torch.float32)
        for rows, wide in self._slices():
            out += grad[:, rows].to(wide.dtype) @ wide
        return (out if self._scale is None else out * self._scale)[:, :k]

    @property
    def _k(self) -> int:
        first = self.format.parts[0]
        return self.parts[first.name].shape[-1] * first.values

    @property
    def _scale(self) -> Tensor | None:
        """The multiplier of the input, if the format has one."""
        inputs = (self.parts[part.name] for part in self.format.parts if part.operand == "input")
        return next(inputs, None)

    def _slices(self) -> Iterator[tuple[slice, Tensor]]:
        first = self.parts[self.format.parts[0].name]
        step = max(1, _SLICE_ELEMS // self._k)
        exact = self.format.of_weight == _EXACT and self.dtype is torch.bfloat16
        fast = first.device.type != "cpu" and exact
        for start in range(0, first.shape[0], step):
            rows = slice(start, start + step)
            cut = {part.name: self.parts[part.name][rows] for part in self.format.weight_parts}
            yield (
                rows,
                self.format.dequantize({**self.parts, **cut}, torch.bfloat16 if fast else torch.float32),
            )


# An operator, so that `torch.compile` takes the arithmetic of layouts and formats as it is.
@torch.library.custom_op("mxfp4_core::linear_gradient", mutates_args=())
def _linear(packed: list[Tensor], grad: Tensor, text: str) -> Tensor:
    """Return ``grad @ weight`` [..., k] of the dtype of grad [..., n]."""
    how = recall(text)
    (held,) = how.weights(packed)
    weight = calls.unpack(how.backend, how.problem, held)
    matrix = WideMatrix(weight.parts, weight.format, grad.dtype)
    made = matrix.backward(grad.reshape(-1, grad.shape[-1]), how.problem.k)
    return made.to(grad.dtype).reshape(*grad.shape[:-1], how.problem.k)


@_linear.register_fake
def _(packed: list[Tensor], grad: Tensor, text: str) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], recall(text).problem.k))


# torch has no annotation for it.
linear_gradient: Callable[..., Any] = LinearGradient.apply
experts_gradient: Callable[..., Any] = ExpertsGradient.apply

__all__ = [
    "ExpertsGradient",
    "LinearGradient",
    "Stacks",
    "WideMatrix",
    "experts_gradient",
    "held_here",
    "linear_gradient",
]
