"""Mixtures of experts: through AITER's fused MoE, or through two launches of its Triton kernel for experts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mxfp4_core.arithmetic import apply_gate, padded
from mxfp4_core.backend import Gate
from mxfp4_rocm.checks import check_rows, check_weight
from mxfp4_rocm.limits import EXPERT_K, EXPERT_N
from mxfp4_rocm.sorting import Sorted, local_slots, sort
from mxfp4_rocm.tokens import E8M0, FP4, quantize_rows
from mxfp4_rocm.vendor import function


class Stack(NamedTuple):
    """The packed weights of a stack of experts.

    Attributes:
        codes: uint8 [experts, n, k/2].
        scales: uint8 [experts, n, k/32]; swizzled [experts * n, k/32] for the fused MoE.
        bias: [experts, n] or None.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None


def moe(
    x: Tensor,
    gate_up: Stack,
    down: Stack,
    ids: Tensor,
    weights: Tensor,
    expert_map: Tensor | None,
    shared: int,
    gate: Gate,
    way: str,
    by_aiter: bool,
) -> Tensor:
    """Compute the sum over the chosen experts of ``topk_weight * expert(x)``.

    Args:
        x: bfloat16 [m, k], contiguous, m >= 1.
        gate_up: [experts + shared, 2n, k]; without a gate [experts + shared, n, k].
        down: [experts + shared, k, n].
        ids: int32 [m, top_k]; what is no expert is an empty slot.
        weights: float32 [m, top_k].
        expert_map: int32 [total_experts] or None.
        shared: how many of the last experts every token goes to.
        gate: the activation.
        way: ``fused``, ``experts`` or ``widened``; see ``rules``.
        by_aiter: whether AITER's Triton quantizer quantises the tokens, where ``fused_moe`` does not do it inside.

    Returns:
        bfloat16 [m, k].

    Raises:
        FormatError, ShapeError: tensors that do not belong together; see ``checks``.
    """
    check_rows("moe", x)
    check_weight("moe", gate_up.codes, gate_up.scales, x, way, x.shape[1], experts=True)
    check_weight("moe", down.codes, down.scales, x, way, gate_up.codes.shape[1] // gate.rows, experts=True)
    ids, weights = local_slots(ids, weights, expert_map, gate_up.codes.shape[0] - shared, shared)
    if way == "fused":
        return _fused(x, gate_up, down, ids, weights)
    return _twice(x, gate_up, down, ids, weights, gate, by_aiter if way == "experts" else None)


def one_expert(x: Tensor, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute ``x @ weight.T`` by the kernel for experts, as one expert that every token goes to.

    Args:
        x: bfloat16 [m, k].
        codes: uint8 [n, k/2].
        scales: uint8 [n, k/32].
        dtype: of the result, bfloat16 or float32.
    """
    m, block = x.shape[0], _block(x.shape[0])
    end = padded(m, block)
    slots = torch.arange(end, dtype=torch.int32, device=x.device).clamp_(max=m)
    owners, filled = slots.new_zeros(end // block), slots.new_full((1,), end)
    ids = slots[:m, None]  # only counted
    order = Sorted(slots, owners, filled)
    return _launch((x, None), codes[None], scales[None], ids, order, block, 1, dtype)[:, 0]


def _fused(x: Tensor, gate_up: Stack, down: Stack, ids: Tensor, weights: Tensor) -> Tensor:
    """Call ``fused_moe``. One expert more than there are takes the empty slots, and the mask leaves it out."""
    experts = gate_up.codes.shape[0]
    mask = torch.ones(experts + 1, dtype=torch.int32, device=x.device)
    mask[-1] = 0
    w1, w2 = (stack.codes.view(FP4) for stack in (gate_up, down))
    for weight in (w1, w2):
        # AITER looks at this mark, which every copy loses; the layout's name has brought the weight here.
        weight.is_shuffled = True  # type: ignore[attr-defined]
    out: Tensor = function("fused_moe")(
        hidden_states=x,
        w1=w1,
        w2=w2,
        topk_weight=weights,
        topk_ids=ids,
        expert_mask=mask,
        activation=function("ActivationType").Silu,
        quant_type=function("QuantType").per_1x32,
        w1_scale=gate_up.scales.view(E8M0),
        w2_scale=down.scales.view(E8M0),
    )
    # Its quantizer does not see what is not finite.
    return torch.where(x.isfinite().all(1, keepdim=True), out, torch.nan)


def _twice(
    x: Tensor, gate_up: Stack, down: Stack, ids: Tensor, weights: Tensor, gate: Gate, by_aiter: bool | None
) -> Tensor:
    """Launch the kernel for gate and up, compute the activation in float32, and launch it for down."""
    experts, top_k = gate_up.codes.shape[0], ids.shape[1]
    block = _block(ids.numel() // experts)
    order = sort(ids, experts, block)
    there = (ids < experts)[..., None]
    owner = torch.where(there[..., 0], ids, 0).long()
    rows: tuple[Tensor, Tensor | None] = (x, None) if by_aiter is None else quantize_rows(x, by_aiter)
    both = _launch(rows, gate_up.codes, gate_up.scales, ids, order, block, top_k, torch.float32)
    both = both if gate_up.bias is None else both + gate_up.bias[owner].float()
    hidden = apply_gate(both, gate).flatten(0, 1)
    rows = (hidden.to(x.dtype), None) if by_aiter is None else quantize_rows(hidden, by_aiter)
    each = _launch(rows, down.codes, down.scales, ids, order, block, 1, torch.float32)
    each = each if down.bias is None else each + down.bias[owner].float()
    # An empty slot was not computed, so that its memory holds anything.
    return torch.where(there, each * weights[..., None], 0.0).sum(1).to(x.dtype)


def _block(rows: int) -> int:
    """Return how many rows of an expert are computed at a time: 16 to 128, as many as it has on average."""
    return next((size for size in (16, 32, 64) if rows <= size), 128)


def _launch(
    rows: tuple[Tensor, Tensor | None],
    codes: Tensor,
    scales: Tensor,
    ids: Tensor,
    order: Sorted,
    block: int,
    top_k: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return [m, slots, n] of ``dtype``: each slot's row times the weight of its expert; an empty slot is not written.

    Args:
        rows: bfloat16 [r, k] and None, or codes [r, k/2] and scales [r, k/32], uint8; r is the number of tokens, or of
            slots where ``top_k`` is 1.
        codes: uint8 [experts, n, k/2].
        scales: uint8 [experts, n, k/32].
        ids: int32 [m, slots].
        order: of these slots.
        block: rows of a block of it.
        top_k: slots of a row.
        dtype: of the sums that are written.
    """
    experts, n, _ = codes.shape
    out = torch.empty((*ids.shape, n), dtype=dtype, device=codes.device)
    one = torch.ones(experts, dtype=torch.float32, device=codes.device)
    config = {
        "BLOCK_SIZE_M": block,
        "BLOCK_SIZE_N": 2 * EXPERT_N if n % (2 * EXPERT_N) == 0 else EXPERT_N,
        "BLOCK_SIZE_K": EXPERT_K,
        "GROUP_SIZE_M": 4,
        "num_warps": 8 if block == 128 else 4,
        "num_stages": 2,
    }
    function("fused_moe_mxfp4")(
        A=rows[0],
        B=codes,
        C=out,
        A_scale=one,
        B_scale=one,
        A_mx_scale=rows[1],
        B_mx_scale=scales,
        topk_weights=torch.empty((1, 1), dtype=torch.float32, device=codes.device),  # not read
        topk_ids=ids,
        sorted_token_ids=order.slots,
        expert_ids=order.experts,
        num_tokens_post_padded=order.filled,
        mul_routed_weight=False,
        top_k=top_k,
        swizzle_mx_a=False,
        swizzle_mx_b=False,
        config=config,
        compute_type=function("torch_to_triton_dtype")[dtype],
    )
    return out


__all__ = ["Stack", "moe", "one_expert"]
