"""The operators ``mxfp4_npu::linear`` and ``::moe``, each with a fake: torch_npu has none for the dual matmul.

Both quantise x on the device, in the dtype that it has, and multiply codes by codes.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from mxfp4_core.arithmetic import apply_gate
from mxfp4_core.backend import Gate, Operators
from mxfp4_npu import experts, vendor

_OPERATORS: Final = Operators("mxfp4_npu")
_LINEAR = (
    "(Tensor x, Tensor codes, Tensor scales, Tensor? level0, Tensor? multiplier, Tensor? bias, str mode) "
    "-> Tensor"
)


def _linear_fake(x: Tensor, codes: Tensor, *rest: object) -> Tensor:
    return x.new_empty((x.shape[0], codes.shape[0]))


@_OPERATORS.define("linear", _LINEAR, _linear_fake)
def linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    level0: Tensor | None,
    multiplier: Tensor | None,
    bias: Tensor | None,
    mode: str,
) -> Tensor:
    """Compute ``quantised(x * multiplier) @ weight.T + bias``.

    Args:
        x: bfloat16 or float16 [m, k], contiguous, k in whole pairs of blocks, or groups of 512.
        codes: uint8 [n, k/2], or int8 in FRACTAL_NZ for two levels.
        scales: uint8 [n, k/64, 2].
        level0: float32 [k/512, n], or None for one level.
        multiplier: float32 [k] or None.
        bias: float32 [n] or None.
        mode: ``round_mode`` of the quantizer of x: ``rint`` or ``round``.

    Returns:
        [m, n] of the dtype of x.

    Raises:
        BackendError: torch_npu is not here.
    """
    npu, output = vendor.loaded(), vendor.OUTPUT[str(x.dtype).removeprefix("torch.")]
    x = scaled(x, multiplier)
    if level0 is None:
        q, inner = experts.quantised(x, mode)
        made: Tensor = npu.npu_quant_matmul(
            q,
            codes.t(),
            scales.transpose(0, 1),
            pertoken_scale=inner,
            bias=bias,
            output_dtype=output,
            x1_dtype=vendor.FP4,
            x2_dtype=vendor.FP4,
            pertoken_scale_dtype=vendor.E8M0,
            scale_dtype=vendor.E8M0,
            group_sizes=[1, 1, 32],
        )
        return made
    q, outer, inner = npu.npu_dynamic_dual_level_mx_quant(x, smooth_scale=None, round_mode=mode)
    made = npu.npu_dual_level_quant_matmul(
        q, codes, outer, level0, inner, scales, bias=bias, output_dtype=output
    )
    return made


_MOE = (
    "(Tensor x, Tensor gate_up, Tensor gate_up_scales, Tensor? gate_up_multiplier, Tensor? gate_up_bias, Tensor down, "
    "Tensor down_scales, Tensor? down_multiplier, Tensor? down_bias, Tensor topk_ids, Tensor topk_weights, "
    "Tensor? expert_map, float alpha, float? limit, float up_offset, bool interleaved, str function, bool gated, "
    "str mode) -> Tensor"
)


@_OPERATORS.define("moe", _MOE, Operators.like_x)
def moe(
    x: Tensor,
    gate_up: Tensor,
    gate_up_scales: Tensor,
    gate_up_multiplier: Tensor | None,
    gate_up_bias: Tensor | None,
    down: Tensor,
    down_scales: Tensor,
    down_multiplier: Tensor | None,
    down_bias: Tensor | None,
    topk_ids: Tensor,
    topk_weights: Tensor,
    expert_map: Tensor | None,
    alpha: float,
    limit: float | None,
    up_offset: float,
    interleaved: bool,
    function: str,
    gated: bool,
    mode: str,
) -> Tensor:
    """Compute the weighted sum over the chosen experts; x and the hidden state are quantised to one level.

    Args:
        x: bfloat16 or float16 [m, k].
        gate_up: uint8 [experts, 2n, k/2], with scales uint8 [experts, 2n, k/64, 2]; without a gate [experts, n, ...].
        gate_up_scales: see ``gate_up``.
        gate_up_multiplier: float32 [k] or None, for x.
        gate_up_bias: float32 [experts, 2n] or None.
        down: uint8 [experts, k, n/2], with scales uint8 [experts, k, n/64, 2].
        down_scales: see ``down``.
        down_multiplier: float32 [n] or None, for the hidden state.
        down_bias: float32 [experts, k] or None.
        topk_ids: int32 [m, top_k]; what is no expert is an empty slot.
        topk_weights: float32 [m, top_k].
        expert_map: int32 [total_experts] or None.
        alpha: see ``Gate``, as the next five.
        limit: clamp or None.
        up_offset: added to up.
        interleaved: order of the gate-up rows.
        function: of the activation.
        gated: whether there are gate rows.
        mode: ``round_mode`` of the quantizers.

    Returns:
        [m, k] of the dtype of x.

    Raises:
        BackendError: torch_npu is not here.
    """
    slots = experts.sort(topk_ids, expert_map, gate_up.shape[0])
    rows = scaled(x, gate_up_multiplier)[slots.tokens]
    both = experts.multiply(rows, gate_up, gate_up_scales, gate_up_bias, slots, mode)
    gate = Gate.of(alpha, limit, up_offset, interleaved, function, gated)
    hidden = apply_gate(both, gate).to(x.dtype)
    result = experts.multiply(scaled(hidden, down_multiplier), down, down_scales, down_bias, slots, mode)
    weights = topk_weights.flatten()[slots.order, None]
    return experts.gather(result, weights, slots, x)


def scaled(x: Tensor, multiplier: Tensor | None) -> Tensor:
    """Return x times its multiplier, made in float32 and rounded to the dtype of x."""
    return x if multiplier is None else (x.to(torch.float32) * multiplier).to(x.dtype)


__all__ = ["linear", "moe", "scaled"]
