"""The operators ``mxfp4_reference::linear``, ``::moe`` and ``::quantize``, for any torch device.

Inside, everything is float32: a product of an E2M1 or E4M3 value times a power of two with a bfloat16 or float16
activation is exact there, so a result differs from the true one by the order of the sum and by one rounding
at the end. The intermediate of an expert stays in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import torch
from torch import Tensor

from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.arithmetic.gate import Gate
from mxfp4_core.arithmetic.gating import apply_gate
from mxfp4_core.arithmetic.quantize import quantize as to_mxfp4
from mxfp4_core.backend.operators import Operators
from mxfp4_core.backend.reference.rounding import Inputs
from mxfp4_core.backend.reference.slices import slice_rows
from mxfp4_core.errors import ShapeError


def _matmul(x: Tensor, weight: list[Tensor], bias: Tensor | None, format: Format) -> Tensor:
    """Return float32 ``x @ weight.T + bias`` for float32 x, widening a slice of rows at a time."""
    step, rows = slice_rows(x.shape[1]), weight[0].shape[0]
    if rows <= step:  # a small weight is one slice, and its call should cost little more than the product
        out = x @ _widened(weight, format).T
    else:
        out = x.new_empty((x.shape[0], rows))
        for start in range(0, rows, step):
            part = slice(start, start + step)
            slices = [
                tensor if each.operand == "input" else tensor[part]
                for each, tensor in zip(format.parts, weight, strict=True)
            ]
            out[:, part] = x @ _widened(slices, format).T
    return out if bias is None else out.add_(bias.to(torch.float32))


def _widened(weight: list[Tensor], format: Format) -> Tensor:
    """Return the values of a weight, or of a slice of its rows, in float32."""
    parts = {each.name: each.of_bytes(tensor) for each, tensor in zip(format.parts, weight, strict=True)}
    return format.dequantize(parts, torch.float32)


def _scale(weight: list[Tensor], format: Format) -> Tensor | None:
    """Return the multiplier of the input, if the format has one."""
    return next((t for p, t in zip(format.parts, weight, strict=True) if p.operand == "input"), None)


_OPERATORS: Final = Operators("mxfp4_reference")
_LINEAR = (
    "(Tensor x, Tensor[] weight, Tensor? bias, str format, str input, str profile, str hidden) -> Tensor"
)


def _linear_fake(x: Tensor, weight: list[Tensor], *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], weight[0].shape[0]))


def compute_linear(
    x: Tensor, weight: list[Tensor], bias: Tensor | None, format: str, input: str, profile: str, hidden: str
) -> Tensor:
    """Compute ``x @ dequantize(weight).T + bias``.

    Args:
        x: float [m, k].
        weight: the parts of the format, in its order; those of the weight have n rows, those of 8 bits are bytes.
        bias: float [n] or None.
        format: name of the format.
        input: what x is quantised to; see `Inputs`, as for the next two.
        profile: by which rule, empty for the format's own.
        hidden: to what it is rounded before.

    Returns:
        [m, n] of the dtype of x.
    """
    kind = get(format)
    wide = Inputs(input, profile, hidden, x.dtype)(x, _scale(weight, kind))
    return _matmul(wide, weight, bias, kind).to(x.dtype)


linear = _OPERATORS.define("linear", _LINEAR, _linear_fake)(compute_linear)

_MOE = (
    "(Tensor x, Tensor[] gate_up, Tensor? gate_up_bias, Tensor[] down, Tensor? down_bias, str format, "
    "Tensor topk_ids, Tensor topk_weights, Tensor? expert_map, Tensor? counts, int shared, float alpha, "
    "float? limit, float up_offset, bool interleaved, str function, bool gated, str input, str profile, "
    "str hidden) -> Tensor"
)


@_OPERATORS.define("moe", _MOE, Operators.like_x)
def moe(
    x: Tensor,
    gate_up: list[Tensor],
    gate_up_bias: Tensor | None,
    down: list[Tensor],
    down_bias: Tensor | None,
    format: str,
    topk_ids: Tensor,
    topk_weights: Tensor,
    expert_map: Tensor | None,
    counts: Tensor | None,
    shared: int,
    alpha: float,
    limit: float | None,
    up_offset: float,
    interleaved: bool,
    function: str,
    gated: bool,
    input: str,
    profile: str,
    hidden: str,
) -> Tensor:
    """Compute the weighted sum over the chosen experts, one expert at a time.

    Args:
        x: float [m, k]; [experts, rows, k] where rows are sorted by expert.
        gate_up: the parts of the format, of a weight [experts + shared, 2n, k]; without a gate [..., n, k].
        gate_up_bias: float [experts + shared, 2n] or None; likewise.
        down: likewise, [experts + shared, k, n].
        down_bias: float [experts + shared, k] or None.
        format: name of the format.
        topk_ids: int32 [m, top_k], -1 for an empty slot; not read where rows are sorted.
        topk_weights: float32 [m, top_k]; likewise.
        expert_map: int32 [total_experts] or None.
        counts: int32 [experts], how many rows of each expert are read, or None for all; where rows are sorted.
        shared: how many of the last experts every token goes to, with weight 1.
        alpha: see ``Gate``, as the next five.
        limit: clamp or None.
        up_offset: added to up.
        interleaved: order of the gate-up rows.
        function: of the activation.
        gated: whether there are gate rows.
        input: what x and the intermediate are quantised to; see `Inputs`, as for the next two.
        profile: by which rule, empty for the format's own.
        hidden: to what both are rounded before.

    Returns:
        The shape and the dtype of x. Of sorted rows the output of their expert, zero where a row is not read.

    Raises:
        ShapeError: an id, a count or an entry of the map that is out of range.
    """
    kind, rounded = get(format), Inputs(input, profile, hidden, x.dtype)
    scales = _scale(gate_up, kind), _scale(down, kind)
    gate = Gate.of(alpha, limit, up_offset, interleaved, function, gated)

    def run(expert: int, rows: Tensor) -> Tensor:
        bias = None if gate_up_bias is None else gate_up_bias[expert]
        both = _matmul(rows, _one(gate_up, expert, kind), bias, kind)
        inner = rounded(apply_gate(both, gate), scales[1])
        bias = None if down_bias is None else down_bias[expert]
        return _matmul(inner, _one(down, expert, kind), bias, kind)

    wide = rounded(x, scales[0])
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    if x.dim() == 3:
        for expert, count in enumerate(_counts(counts, x.shape[0], x.shape[1])):
            out[expert, :count] = run(expert, wide[expert, :count])
        return out.to(x.dtype)
    routed = gate_up[0].shape[0] - shared
    for expert, tokens, slots in _routes(topk_ids, expert_map, routed):
        out.index_add_(0, tokens, run(expert, wide[tokens]) * topk_weights[tokens, slots, None])
    for expert in range(routed, routed + shared):
        out += run(expert, wide)
    return out.to(x.dtype)


def _one(weight: list[Tensor], expert: int, format: Format) -> list[Tensor]:
    return [t if p.operand == "input" else t[expert] for p, t in zip(format.parts, weight, strict=True)]


def _routes(ids: Tensor, expert_map: Tensor | None, experts: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each expert of this rank that has work, with its tokens and their slots in top-k."""
    total = experts if expert_map is None else expert_map.shape[0]
    _in_range("topk_ids", ids, -1, total)
    if expert_map is not None:
        _in_range("expert_map", expert_map, -1, experts)
        ids = torch.where(ids < 0, ids, expert_map[ids.clamp(min=0).long()])
    for expert in cast("list[int]", ids.unique().tolist()):
        if expert >= 0:
            tokens, slots = torch.where(ids == expert)
            yield expert, tokens, slots


def _counts(counts: Tensor | None, experts: int, rows: int) -> list[int]:
    if counts is None:
        return [rows] * experts
    _in_range("counts", counts, 0, rows + 1)
    return cast("list[int]", counts.tolist())


def _in_range(name: str, values: Tensor, start: int, end: int) -> None:
    low, high = int(values.min()), int(values.max())
    if low < start or high >= end:
        rule, fix = f"each is -1 or one of the {end} experts 0 to {end - 1}", "the expert map of this rank"
        if start == 0:
            rule, fix = f"each expert has 0 to {end - 1} rows", "the counts of these rows"
        raise ShapeError(
            f"mxfp4_reference::moe, {name}",
            seen=f"values from {low} to {high}",
            rule=rule,
            fix=f"pass what the router made for these experts, and {fix}",
        )


@_OPERATORS.define("quantize", "(Tensor weight, str profile) -> (Tensor, Tensor)", Operators.pair)
def quantize(weight: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    """Quantise with the core's quantizer.

    Args:
        weight: float [..., k], k a multiple of 32.
        profile: name of a profile.

    Returns:
        codes uint8 [..., k/2] and scales uint8 [..., k/32].
    """
    result = to_mxfp4(weight, profile=profile, nonfinite="nan")
    return result.codes, result.scales


__all__ = ["compute_linear", "linear", "moe", "quantize"]
