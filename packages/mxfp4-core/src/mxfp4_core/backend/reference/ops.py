"""The operators ``mxfp4_reference::linear``, ``::moe`` and ``::quantize``, for any torch device.

Inside, everything is float32: a product of an E2M1 value times a power of two with a bfloat16 or float16
activation is exact there, so a result differs from the true one by the order of the sum and by one rounding
at the end. The intermediate of an expert stays in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from mxfp4_core.arithmetic.dequantize import dequantize
from mxfp4_core.arithmetic.quantize import quantize as _quantize
from mxfp4_core.backend.reference.slices import slice_rows
from mxfp4_core.errors import BackendError, ShapeError


def _widen(x: Tensor, activation_profile: str) -> Tensor:
    """Return x in float32, after a trip through MXFP4 if a profile says so."""
    if not activation_profile:
        return x.to(torch.float32)
    return _quantize(x, profile=activation_profile, nonfinite="nan").dequantize(torch.float32)


def _matmul(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Return float32 ``x @ weight.T + bias`` for float32 x, widening a slice of rows at a time."""
    step, rows = slice_rows(x.shape[1]), codes.shape[0]
    out = x.new_empty((x.shape[0], rows))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        out[:, part] = x @ dequantize(codes[part], scales[part], torch.float32).T
    return out if bias is None else out.add_(bias.to(torch.float32))


_LINEAR = "(Tensor x, Tensor codes, Tensor scales, Tensor? bias, str activation_profile) -> Tensor"


@torch.library.custom_op("mxfp4_reference::linear", mutates_args=(), schema=_LINEAR)
def linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, activation_profile: str) -> Tensor:
    """Compute ``x @ dequantize(codes, scales).T + bias``.

    Args:
        x: float [m, k].
        codes: uint8 [n, k/2].
        scales: uint8 [n, k/32].
        bias: float [n] or None.
        activation_profile: how x is quantised first, empty for not at all.

    Returns:
        [m, n] of the dtype of x.
    """
    return _matmul(_widen(x, activation_profile), codes, scales, bias).to(x.dtype)


@linear.register_fake
def _(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, activation_profile: str) -> Tensor:
    return x.new_empty((x.shape[0], codes.shape[0]))


_MOE = (
    "(Tensor x, Tensor gate_up, Tensor gate_up_scale, Tensor? gate_up_bias, Tensor down, Tensor down_scale, "
    "Tensor? down_bias, Tensor topk_ids, Tensor topk_weights, Tensor? expert_map, float alpha, float? limit, "
    "float up_offset, bool interleaved, str activation_profile) -> Tensor"
)


@torch.library.custom_op("mxfp4_reference::moe", mutates_args=(), schema=_MOE)
def moe(
    x: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    gate_up_bias: Tensor | None,
    down: Tensor,
    down_scale: Tensor,
    down_bias: Tensor | None,
    topk_ids: Tensor,
    topk_weights: Tensor,
    expert_map: Tensor | None,
    alpha: float,
    limit: float | None,
    up_offset: float,
    interleaved: bool,
    activation_profile: str,
) -> Tensor:
    """Compute the weighted sum over the chosen experts, one expert at a time.

    Args:
        x: float [m, k].
        gate_up: uint8 [experts, 2n, k/2], with its scales and bias [experts, 2n].
        gate_up_scale: uint8 [experts, 2n, k/32].
        gate_up_bias: float or None.
        down: uint8 [experts, k, n/2], with its scales and bias [experts, k].
        down_scale: uint8 [experts, k, n/32].
        down_bias: float or None.
        topk_ids: int32 [m, top_k], -1 for an empty slot.
        topk_weights: float32 [m, top_k].
        expert_map: int32 [total_experts] or None.
        alpha: see ``Gate``, as the next three.
        limit: clamp or None.
        up_offset: added to up.
        interleaved: order of the gate-up rows.
        activation_profile: how x and the intermediate are quantised first, empty for not at all.

    Returns:
        [m, k] of the dtype of x.

    Raises:
        ShapeError: an id, or an entry of the map, that is neither -1 nor an expert.
    """
    wide = _widen(x, activation_profile)
    out = torch.zeros((x.shape[0], down.shape[1]), dtype=torch.float32, device=x.device)
    for expert, tokens, slots in _routes(topk_ids, expert_map, gate_up.shape[0]):
        bias = None if gate_up_bias is None else gate_up_bias[expert]
        both = _matmul(wide[tokens], gate_up[expert], gate_up_scale[expert], bias)
        gate, up = (both[:, 0::2], both[:, 1::2]) if interleaved else both.chunk(2, dim=1)
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        hidden = (up + up_offset) * gate * torch.sigmoid(alpha * gate)
        bias = None if down_bias is None else down_bias[expert]
        result = _matmul(_widen(hidden, activation_profile), down[expert], down_scale[expert], bias)
        out.index_add_(0, tokens, result * topk_weights[tokens, slots, None])
    return out.to(x.dtype)


@moe.register_fake
def _(x: Tensor, *weights: Any) -> Tensor:
    return torch.empty_like(x)


def _routes(ids: Tensor, expert_map: Tensor | None, experts: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each expert of this rank that has work, with its tokens and their slots in top-k."""
    total = experts if expert_map is None else expert_map.shape[0]
    _in_range("topk_ids", ids, total)
    if expert_map is not None:
        _in_range("expert_map", expert_map, experts)
        ids = torch.where(ids < 0, ids, expert_map[ids.clamp(min=0).long()])
    for expert in cast("list[int]", ids.unique().tolist()):
        if expert >= 0:
            tokens, slots = torch.where(ids == expert)
            yield expert, tokens, slots


def _in_range(name: str, values: Tensor, end: int) -> None:
    low, high = int(values.min()), int(values.max())
    if low < -1 or high >= end:
        raise ShapeError(
            f"mxfp4_reference::moe, {name}",
            seen=f"values from {low} to {high}",
            rule=f"each is -1 or one of the {end} experts 0 to {end - 1}",
            fix="pass ids that the router made for these experts, and the expert map of this rank",
        )


@torch.library.custom_op(
    "mxfp4_reference::quantize", mutates_args=(), schema="(Tensor weight, str profile) -> (Tensor, Tensor)"
)
def quantize(weight: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    """Quantise with the core's quantizer.

    Args:
        weight: float [..., k], k a multiple of 32.
        profile: name of a profile.

    Returns:
        codes uint8 [..., k/2] and scales uint8 [..., k/32].
    """
    result = _quantize(weight, profile=profile, nonfinite="nan")
    return result.codes, result.scales


@quantize.register_fake
def _(weight: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    *lead, k = weight.shape
    return weight.new_empty((*lead, k // 2), dtype=torch.uint8), weight.new_empty(
        (*lead, k // 32), dtype=torch.uint8
    )


def _no_gradient(context: Any, *gradients: Tensor) -> None:
    raise BackendError(
        "a gradient through an MXFP4 weight",
        seen="backward() reached an operator of the backend 'reference'",
        rule="MXFP4 weights are frozen, and this backend computes no gradient of its input",
        fix="run under torch.no_grad(), or train the BF16 model and quantise the result",
    )


linear.register_autograd(_no_gradient)
moe.register_autograd(_no_gradient)
