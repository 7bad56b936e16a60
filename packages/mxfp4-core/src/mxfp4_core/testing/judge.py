"""The right answer, and how far from it a correct kernel may be.

Both come from float64 on the dequantised weights. The bound is derived, not tuned:

* A product of an E2M1 value times a power of two (2 significant bits; of E4M3, 4) with a bfloat16 (8) or float16 (11)
  activation has at most 15 significant bits: exact in float32. A float32 activation adds one rounding.
* A sum of K terms in float32, in any order, is off by at most ``K * eps * sum|x||w|``. ``eps = 2**-23`` covers units
  that truncate instead of rounding. What is below the normal range may be flushed, each time by less than 2**-126.
* The result is rounded once to its dtype: half a unit in the last place, ``eps(dtype) / 2`` relative.
* ``Numerics.product_error`` comes on top where a backend states one. ``Numerics.accumulate`` takes the place of
  float32 in sums.
* A result beyond its dtype is rounded to infinity. Where ``sum|x||w|`` or a weight alone is beyond float32, a sum in
  some order is infinite or NaN, and so may be the result; a finite one has to be within the bound all the same.
* Weights are what the format says, but for what the numerics say of their scale bytes: a block of byte 0 may be read as
  zero, and where one of byte 255 is read as infinite, the result may be infinite or NaN.

An expert goes through this twice. Between the matmuls a kernel may keep float32 or round to the activation dtype, and
it may round each expert's result before the weighted sum; the bound allows for these and carries them through:
``functions.slope`` bounds what the activation does to an error of its input, and a clamp never widens one. That bound
holds for the worst case, in which all roundings of a sum go the same way, so it is wide. Roundings that go either way
nearly cancel: over a whole result the error is a few half units of the dtype, and `Answer.noise` says how many are
allowed.

Where x and the hidden state are quantised, ``judge_inputs`` carries bounds through the quantizer. A weight with outer
scales, and an input with float scales, add one rounding of each product to float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.backend import Gate, Numerics, input_format
from mxfp4_core.testing import functions, judge_inputs
from mxfp4_core.testing.answer import EPS32, FLUSHED, Answer

GATE_EPS = 2.0**-19  # a fast sigmoid: exp2 and reciprocal approximations with a few wrong bits


class _Products:
    """How the products of one call are made and summed, as the numerics say.

    Attributes:
        kind: what the inputs are quantised to, or ``none``.
        early: the dtype to which values are rounded before they are quantised; None: they stay float32.
        sums: the dtype of sums.
        eps: of one addition, relative.
        product_error: of one product, relative.
    """

    def __init__(self, weight: MxTensor, numerics: Numerics, activation: str, dtype: torch.dtype) -> None:
        self.kind, self.profile = input_format(weight.format.name, activation), numerics.activation_profile
        self.early = dtype if numerics.hidden == "input" else None
        self.dtype, self.numerics = dtype, numerics
        self.sums: torch.dtype = getattr(torch, numerics.accumulate)
        self.eps = max(EPS32, torch.finfo(self.sums).eps)  # float64 sums what float32 holds
        widened = self.kind in ("fp8", "mxfp4-dual") or "level0" in weight.parts
        self.product_error = numerics.product_error + (2 * EPS32 if widened else 0.0)

    def __call__(self, values: Answer, weight: MxTensor) -> Answer:
        """Answer a hidden state as it is multiplied by a weight; the multiplier of the input comes first."""
        if self.kind == "none":
            return (
                self._times(values, weight).rounded(self.dtype) if "input_scale" in weight.parts else values
            )
        values = self._early(values)
        if "input_scale" in weight.parts:
            values = self._times(values, weight)
            if self.early is not None:
                values = self._early(values.rounded(self.early))
        return judge_inputs.quantized(values, self.kind, self.profile, self.early or torch.float32)

    def first(self, x: Tensor, weight: MxTensor) -> Answer:
        """Answer x itself: its values are known, and so is every rounding of them that is stated."""
        exact, dtype = Answer.exact(x), self.dtype
        if self.kind == "none":
            return self(exact, weight)
        if "input_scale" in weight.parts:
            dtype = self.early or torch.float32
            exact = Answer.exact((x.to("cpu", torch.float32) * _factor(weight, x.shape[-1])).to(dtype))
        return judge_inputs.quantized(exact, self.kind, self.profile, dtype)

    def matmul(self, x: Answer, weight: MxTensor, bias: Tensor | None, expert: int | None = None) -> Answer:
        """Answer the product of an input and a weight, of one expert where it is named, before it is rounded."""
        wide = self._wide(weight, expert).T
        large = wide.abs()
        value, size = x.value @ wide, x.value.abs() @ large
        k = wide.shape[0]
        if bias is not None:
            value, size = value + bias.to("cpu", torch.float64), size + bias.to("cpu", torch.float64).abs()
        bound = ((k + 2) * self.eps + self.product_error) * size
        bound = bound + k * max(FLUSHED, torch.finfo(self.sums).smallest_normal) + x.bound @ large
        lost = Answer(size, bound).overflows(self.sums)
        if not bool(large.max() <= torch.finfo(torch.float32).max):  # asked of all at once: it is seldom so
            lost |= Answer.exact(wide).overflows(torch.float32).any(0)
        lost &= ~value.isnan()
        if self.numerics.scale_byte_255 == "inf":
            lost |= wide.isnan().any(0) & ~x.value.isnan().any(1, keepdim=True)
        return Answer(value, bound, lost=lost)

    def _wide(self, weight: MxTensor, expert: int | None) -> Tensor:
        parts = {
            part.name: weight.parts[part.name]
            if expert is None or part.operand == "input"
            else weight.parts[part.name][expert]
            for part in weight.format.parts
        }
        shape = torch.Size(weight.shape[-2:])
        found = MxTensor.from_parts(weight.format, parts, shape, weight.profile).to("cpu")
        wide = found.dequantize(torch.float64)
        if self.numerics.scale_byte_0 == "zero":
            for part in weight.format.parts:
                if "float8_e8m0fnu" in part.same:
                    zero = (found.parts[part.name] == 0).repeat_interleave(part.values, -1)
                    wide = wide.masked_fill(zero[:, : shape[-1]], 0.0)
        return wide

    def _early(self, values: Answer) -> Answer:
        """Return the nominal values, rounded where they are rounded early; the bound has room for it already."""
        if self.early is None:
            return values
        nominal = values.value.to(self.early).to(torch.float64)
        return Answer(nominal, values.bound + (nominal - values.value).abs())

    @staticmethod
    def _times(values: Answer, weight: MxTensor) -> Answer:
        factor = _factor(weight, values.value.shape[-1]).to(torch.float64)
        return Answer(values.value * factor, values.bound * factor.abs()).rounded(torch.float32)


def _factor(weight: MxTensor, k: int) -> Tensor:
    return weight.parts["input_scale"].to("cpu", torch.float32)[:k]


def linear(
    x: Tensor, weight: MxTensor, bias: Tensor | None, numerics: Numerics, activation: str = ""
) -> Answer:
    """Answer ``x @ weight.T + bias``.

    Args:
        x: [m, k].
        weight: canonical [n, k], of any format; with a multiplier of the input, x is multiplied by it first.
        bias: [n] or None.
        numerics: of the backend for the problem.
        activation: how x is quantised, empty for what the numerics say; ``none`` where x was quantised and widened
            already.

    Returns:
        [m, n], rounded to the dtype of x.
    """
    products = _Products(weight, numerics, activation or numerics.activation or "none", x.dtype)
    return products.matmul(products.first(x, weight), weight, bias).rounded(x.dtype)


def gated(gate: Answer, up: Answer | None, form: Gate, dtype: torch.dtype | None) -> Answer:
    """Answer the activation for gate and up values that are known up to their bounds; without a gate, for up values.

    Args:
        gate: values before the clamp; up values where there is no gate.
        up: likewise; None where there is no gate.
        form: the activation.
        dtype: to which the result may be rounded; None: it stays float32.
    """
    g = gate.value if form.limit is None else gate.value.clamp(max=form.limit)
    made, bound = functions.value(g, form), functions.slope(Answer(g, gate.bound), form) * gate.bound
    bound = bound + functions.cancelled(g, form)
    if up is not None:
        u = up.value if form.limit is None else up.value.clamp(-form.limit, form.limit)
        u = u + form.up_offset
        bound = (u.abs() + up.bound) * bound + made.abs() * up.bound
        made = u * made
    hidden = Answer(made, bound + GATE_EPS * made.abs())
    return hidden.rounded(dtype or torch.float32)


def _halves(both: Answer, form: Gate) -> tuple[Answer, Answer | None]:
    if not form.gated:
        return both, None
    half = both.value.shape[1] // 2
    parts = (slice(0, half, None), slice(half, None, None))
    if form.interleaved:
        parts = (slice(0, None, 2), slice(1, None, 2))
    gate, up = (Answer(both.value[:, part], both.bound[:, part]) for part in parts)
    return gate, up


def moe(
    x: Tensor,
    gate_up: MxTensor,
    down: MxTensor,
    biases: tuple[Tensor | None, Tensor | None],
    topk_ids: Tensor,
    topk_weights: Tensor,
    form: Gate,
    numerics: Numerics,
    *,
    activation: str = "none",
    shared: int = 0,
) -> Answer:
    """Answer a whole MoE layer, one expert at a time.

    Args:
        x: [m, k].
        gate_up: canonical [experts + shared, 2n, k]; without a gate [experts + shared, n, k].
        down: canonical [experts + shared, k, n].
        biases: [experts + shared, 2n] and [experts + shared, k], or None.
        topk_ids: [m, top_k], indices of experts here; negative for an empty slot.
        topk_weights: [m, top_k].
        form: the gated activation.
        numerics: of the backend for the problem.
        activation: how x and the hidden state are quantised.
        shared: how many of the last experts every token goes to, with weight 1.

    Returns:
        [m, k], rounded to the dtype of x.
    """
    products = _Products(gate_up, numerics, activation, x.dtype)
    # Where values are quantised from float32, nothing between the products may be rounded to less.
    between = x.dtype if products.kind == "none" or products.early is not None else torch.float32
    ids, weights = topk_ids.to("cpu"), topk_weights.to("cpu", torch.float32).to(torch.float64)
    if shared:
        experts = gate_up.shape[0] - shared
        every = torch.arange(experts, experts + shared).expand(len(ids), shared).to(ids.dtype)
        ids, weights = torch.cat([ids, every], 1), torch.cat([weights, torch.ones(every.shape)], 1)
    whole = products.first(x, gate_up)
    value, bound, size = (torch.zeros_like(whole.value) for _ in range(3))
    lost = torch.zeros(whole.value.shape, dtype=torch.bool)
    for expert in sorted({int(i) for i in ids.unique() if i >= 0}):
        tokens, slots = torch.where(ids == expert)
        rows = Answer(whole.value[tokens], whole.bound[tokens])
        bias = [None if b is None else b[expert] for b in biases]
        both = products.matmul(rows, gate_up, bias[0], expert).rounded(between)
        made = gated(*_halves(both, form), form, between)
        hidden = products(made, down)
        result = products.matmul(hidden, down, bias[1], expert).rounded(x.dtype)
        factor = weights[tokens, slots, None]
        # What is not finite between the products makes the whole token so.
        between_lost = [each.overflows(between).any(1) for each in (both, made, hidden)]
        lost[tokens] |= torch.stack(between_lost).any(0)[:, None] | result.overflows(x.dtype)
        value.index_add_(0, tokens, factor * result.value)
        bound.index_add_(0, tokens, factor.abs() * result.bound)
        size.index_add_(0, tokens, factor.abs() * (result.value.abs() + result.bound))
    # The weighted sum: in float32, or in the dtype of the result by kernels that add slot after slot.
    ulp = torch.finfo(x.dtype).eps
    noise = 2 * ulp + products.eps * math.sqrt(gate_up.shape[-1]) + 4 * numerics.product_error
    if products.kind != "none":
        early = ulp if products.early is not None else 4 * products.eps * math.sqrt(gate_up.shape[-1])
        noise += judge_inputs.noise(products.kind, early)
    return Answer(value, bound + (ids.shape[1] + 1) * max(EPS32, ulp) * size, noise, lost).rounded(x.dtype)


__all__ = ["Answer", "gated", "linear", "moe"]
