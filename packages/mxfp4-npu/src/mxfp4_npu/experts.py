"""What stands around ``npu_grouped_matmul``: rows in the order of their experts, and back. Nothing waits.

Source: CANN's page of aclnnGroupedMatmulV5, MX quantisation: weights [g, n, k] as transposed views with scales
[g, n, k/64, 2], one group of rows for each expert, rows of no group left alone, a result in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxfp4_npu import vendor


@dataclass(frozen=True)
class Slots:
    """The slots [m, top_k] of a call, flattened and sorted by expert; empty ones come last.

    Attributes:
        order: int64 [m * top_k], which slot each row is.
        tokens: int64 [m * top_k], whose token it holds.
        experts: int64 [m * top_k], whose weights it meets; the number of experts for an empty slot.
        counts: int64 [experts], rows of each expert.
    """

    order: Tensor
    tokens: Tensor
    experts: Tensor
    counts: Tensor


def sort(topk_ids: Tensor, expert_map: Tensor | None, experts: int) -> Slots:
    """Sort the slots by expert.

    Args:
        topk_ids: int32 [m, top_k]; what is no expert is an empty slot.
        expert_map: int32 [total_experts] or None; what it maps to no expert is one, too.
        experts: experts here.
    """
    ids = topk_ids.flatten().long()
    if expert_map is not None:
        known = (ids >= 0) & (ids < expert_map.shape[0])
        ids = torch.where(known, expert_map[torch.where(known, ids, 0)].long(), -1)
    ids = torch.where((ids >= 0) & (ids < experts), ids, experts)
    order = torch.argsort(ids, stable=True)
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=ids.device)
    counts.scatter_add_(0, ids, torch.ones_like(ids))
    return Slots(order, order // topk_ids.shape[1], ids[order], counts[:experts])


def quantised(x: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Return the codes uint8 [m, k/2] and the scales uint8 [m, k/64, 2] of x [m, k], one level."""
    codes, scales = vendor.loaded().npu_dynamic_mx_quant(
        x, axis=-1, round_mode=mode, dst_type=vendor.FP4, block_size=32
    )
    return codes, scales


def multiply(
    rows: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, slots: Slots, mode: str
) -> Tensor:
    """Multiply each row by the weight of its expert.

    Args:
        rows: bfloat16 or float16 [m * top_k, k], sorted as ``slots``.
        weight: uint8 [experts, n, k/2].
        scales: uint8 [experts, n, k/64, 2].
        bias: float32 [experts, n] or None.
        slots: whose rows these are.
        mode: ``round_mode`` of the quantizer.

    Returns:
        float32 [m * top_k, n]. Rows of empty slots hold whatever was in memory.
    """
    q, inner = quantised(rows, mode)
    (made,) = vendor.loaded().npu_grouped_matmul(
        [q],
        [weight.transpose(1, 2)],
        bias=None if bias is None else [bias],
        scale=[scales.transpose(1, 2)],
        per_token_scale=[inner],
        group_list=slots.counts,
        split_item=3,
        group_type=0,
        group_list_type=1,
        output_dtype=vendor.OUTPUT["float32"],
        x_dtype=vendor.FP4,
        weight_dtype=vendor.FP4,
        scale_dtype=vendor.E8M0,
        per_token_scale_dtype=vendor.E8M0,
    )
    result: Tensor = made
    return result


def gather(result: Tensor, weights: Tensor, slots: Slots, x: Tensor) -> Tensor:
    """Return the weighted sum over the slots of each token, in the shape and the dtype of x.

    Args:
        result: float32 [m * top_k, k], sorted as ``slots``; rows of empty slots do not count, whatever they hold.
        weights: float32 [m * top_k, 1], sorted likewise.
        slots: whose rows these are.
        x: [m, k].
    """
    full = slots.experts[:, None] < slots.counts.shape[0]
    part = torch.where(full, result * weights, 0.0)
    back = torch.empty_like(part)
    back[slots.order] = part  # a permutation, so that the sum below has one order and the same bits each time
    return back.view(x.shape[0], -1, x.shape[1]).sum(1).to(x.dtype)


__all__ = ["Slots", "gather", "multiply", "quantised", "sort"]
