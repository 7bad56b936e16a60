"""The right answer, and how far from it a correct kernel may be.

Both come from float64 on the dequantised weights. The bound is derived, not tuned:

* A product of an E2M1 value times a power of two (2 significant bits) with a bfloat16 (8) or float16 (11) activation
  has at most 13 significant bits: exact in float32. A float32 activation adds one rounding.
* A sum of K terms in float32, in any order, is off by at most ``K * eps * sum|x||w|``. ``eps = 2**-23`` covers units
  that truncate instead of rounding. What is below the normal range may be flushed, each time by less than 2**-126.
* The result is rounded once to its dtype: half a unit in the last place, ``eps(dtype) / 2`` relative.
* ``Numerics.product_error`` comes on top where a backend states one.

An expert goes through this twice. Between the matmuls a kernel may keep float32 or round to the activation dtype, and
it may round each expert's result before the weighted sum; the bound allows for these and carries them through:
``d/dg g * sigmoid(alpha * g) <= 1.1`` for every alpha, and a clamp never widens an error. That bound holds for the
worst case, in which all roundings of a sum go the same way, so it is wide. Roundings that go either way nearly cancel:
over a whole result the error is a few half units of the dtype, and `Answer.noise` says how many are allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.backend import Gate, Numerics

EPS32 = 2.0**-23
FLUSHED = 2.0**-126
GATE_SLOPE = 1.1
GATE_EPS = 2.0**-19  # a fast sigmoid: exp2 and reciprocal approximations with a few wrong bits


@dataclass(frozen=True)
class Answer:
    """The true result and the errors of a correct one.

    Attributes:
        value: float64.
        bound: float64 of the same shape: largest error of each element.
        noise: largest norm of all errors, relative to the norm of the finite values; infinite if only ``bound`` counts.
    """

    value: Tensor
    bound: Tensor
    noise: float = math.inf

    def check(self, got: Tensor, what: str = "result") -> None:
        """Compare.

        Raises:
            AssertionError: an element is further away than the bound, or is NaN where the truth is not; or all of
                them together are noisier than they may be.
        """
        assert tuple(got.shape) == tuple(self.value.shape), f"{what}: shape {tuple(got.shape)}"
        error = (got.to("cpu", torch.float64) - self.value).abs()
        bad = ~(error <= self.bound) & ~(got.to("cpu").isnan() & self.value.isnan())
        if not bool(bad.any()):
            finite = self.value.isfinite()
            noise = float(error[finite].norm() / self.value[finite].norm().clamp(min=FLUSHED))
            assert noise <= self.noise, (
                f"{what}: relative error {noise:.3g} as a whole, at most {self.noise:.3g}"
            )
            return
        worst = tuple(int(i) for i in bad.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {bad.numel()} elements are beyond the bound, first at {worst}: "
            f"{float(got[worst])} instead of {float(self.value[worst])} +- {float(self.bound[worst]):.3g}"
        )

    def rounded(self, dtype: torch.dtype) -> Answer:
        """Return the answer after one rounding to ``dtype``."""
        half = torch.finfo(dtype).eps / 2
        room = half * (self.value.abs() + self.bound) + torch.finfo(dtype).smallest_normal * half
        return Answer(self.value, self.bound + room, self.noise)


def _wide(weight: MxTensor, expert: int | None = None) -> Tensor:
    codes, scales = (
        (weight.codes, weight.scales) if expert is None else (weight.codes[expert], weight.scales[expert])
    )
    shape = torch.Size(weight.shape[-2:])
    return MxTensor(codes, scales, shape, weight.profile).to("cpu").dequantize(torch.float64)


def _matmul(x: Answer, weight: Tensor, bias: Tensor | None, numerics: Numerics) -> Answer:
    weight = weight.T
    value, size = x.value @ weight, x.value.abs() @ weight.abs()
    k = weight.shape[0]
    if bias is not None:
        value, size = value + bias.to("cpu", torch.float64), size + bias.to("cpu", torch.float64).abs()
    bound = ((k + 2) * EPS32 + numerics.product_error) * size + k * FLUSHED
    return Answer(value, bound + x.bound @ weight.abs())


def linear(x: Tensor, weight: MxTensor, bias: Tensor | None, numerics: Numerics) -> Answer:
    """Answer ``x @ weight.T + bias``.

    Args:
        x: [m, k], as the kernel multiplies it: quantised and widened already where the backend quantises it.
        weight: canonical [n, k].
        bias: [n] or None.
        numerics: of the backend.

    Returns:
        [m, n], rounded to the dtype of x.
    """
    exact = x.to("cpu", torch.float64)
    return _matmul(Answer(exact, torch.zeros_like(exact)), _wide(weight), bias, numerics).rounded(x.dtype)


def gated(gate: Answer, up: Answer, form: Gate, dtype: torch.dtype) -> Answer:
    """Answer the gated activation for gate and up values that are known up to their bounds."""
    g, u = gate.value, up.value
    if form.limit is not None:
        g, u = g.clamp(max=form.limit), u.clamp(-form.limit, form.limit)
    u = u + form.up_offset
    swish = g * torch.sigmoid(form.alpha * g)
    bound = (u.abs() + up.bound) * GATE_SLOPE * gate.bound + swish.abs() * up.bound
    hidden = Answer(u * swish, bound + GATE_EPS * (u * swish).abs())
    return hidden.rounded(dtype)


def moe(
    x: Tensor,
    gate_up: MxTensor,
    down: MxTensor,
    biases: tuple[Tensor | None, Tensor | None],
    topk_ids: Tensor,
    topk_weights: Tensor,
    form: Gate,
    numerics: Numerics,
) -> Answer:
    """Answer a whole MoE layer, one expert at a time.

    Args:
        x: [m, k].
        gate_up: canonical [experts, 2n, k].
        down: canonical [experts, k, n].
        biases: [experts, 2n] and [experts, k], or None.
        topk_ids: [m, top_k], indices of experts here; negative for an empty slot.
        topk_weights: [m, top_k].
        form: the gated activation.
        numerics: of the backend.

    Returns:
        [m, k], rounded to the dtype of x.
    """
    exact = x.to("cpu", torch.float64)
    ids, weights = topk_ids.to("cpu"), topk_weights.to("cpu", torch.float32).to(torch.float64)
    value, bound, size = torch.zeros_like(exact), torch.zeros_like(exact), torch.zeros_like(exact)
    for expert in sorted({int(i) for i in ids.unique() if i >= 0}):
        tokens, slots = torch.where(ids == expert)
        rows = Answer(exact[tokens], torch.zeros_like(exact[tokens]))
        bias = [None if b is None else b[expert] for b in biases]
        both = _matmul(rows, _wide(gate_up, expert), bias[0], numerics).rounded(x.dtype)
        halves = (slice(0, None, 2), slice(1, None, 2))
        if not form.interleaved:
            half = both.value.shape[1] // 2
            halves = (slice(0, half, None), slice(half, None, None))
        gate, up = (Answer(both.value[:, part], both.bound[:, part]) for part in halves)
        hidden = gated(gate, up, form, x.dtype)
        result = _matmul(hidden, _wide(down, expert), bias[1], numerics).rounded(x.dtype)
        factor = weights[tokens, slots, None]
        value.index_add_(0, tokens, factor * result.value)
        bound.index_add_(0, tokens, factor.abs() * result.bound)
        size.index_add_(0, tokens, factor.abs() * (result.value.abs() + result.bound))
    # The weighted sum: in float32, or in the dtype of the result by kernels that add slot after slot.
    ulp = torch.finfo(x.dtype).eps
    noise = 2 * ulp + EPS32 * math.sqrt(gate_up.shape[-1]) + 4 * numerics.product_error
    return Answer(value, bound + (ids.shape[1] + 1) * max(EPS32, ulp) * size, noise).rounded(x.dtype)
