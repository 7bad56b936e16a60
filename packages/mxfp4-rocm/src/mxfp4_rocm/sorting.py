"""Slots of a router in the order in which a kernel for experts reads them: by expert, in whole blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Sorted(NamedTuple):
    """What ``fused_moe_mxfp4`` reads.

    Attributes:
        slots: int32 [blocks * block]: numbers of slots, token by token; the number of all slots where there is none.
        experts: int32 [blocks]: whose block it is.
        filled: int32 [1]: how many entries of ``slots`` count.
    """

    slots: Tensor
    experts: Tensor
    filled: Tensor


def local_slots(
    ids: Tensor, weights: Tensor, expert_map: Tensor | None, experts: int, shared: int
) -> tuple[Tensor, Tensor]:
    """Return indices of experts here and weights, with columns for shared experts.

    An empty slot has the index after the last expert, and weight 0.

    Args:
        ids: int32 [m, top_k], in any range.
        weights: float32 [m, top_k].
        expert_map: int32 [total_experts] from ids to indices here, or None.
        experts: routed experts here.
        shared: experts that every token goes to, whose indices follow.

    Returns:
        int32 and float32 [m, top_k + shared].
    """
    if expert_map is not None:
        known = (ids >= 0) & (ids < expert_map.shape[0])
        ids = torch.where(known, expert_map[torch.where(known, ids, 0).long()], -1)
    there = (ids >= 0) & (ids < experts)
    ids, weights = torch.where(there, ids, experts + shared), torch.where(there, weights, 0.0)
    if shared:
        every = torch.arange(experts, experts + shared, dtype=ids.dtype, device=ids.device)
        ids = torch.cat((ids, every.expand(ids.shape[0], -1)), 1)
        weights = torch.cat((weights, weights.new_ones(ids.shape[0], shared)), 1)
    return ids.contiguous(), weights.contiguous()


def sort(ids: Tensor, experts: int, block: int) -> Sorted:
    """Sort slots by expert, each expert's padded to whole blocks. Nothing waits for the device.

    Args:
        ids: int32 [m, slots] from `local_slots`; ``experts`` for an empty slot, which is left out.
        experts: in the stack.
        block: rows of a block.
    """
    flat = ids.reshape(-1).long()
    total = flat.numel()
    blocks = total // block + min(experts, total)  # each expert with work ends in one block that is not full
    order = torch.argsort(flat, stable=True)
    sizes = flat.new_zeros(experts + 1).scatter_add_(0, flat, torch.ones_like(flat))
    first = sizes.cumsum(0) - sizes
    whole = (sizes[:experts] + block - 1) // block
    ends = whole.cumsum(0)
    starts = torch.cat((ends - whole, ends.new_full((1,), blocks))) * block
    owner = flat[order]
    place = starts[owner] + torch.arange(total, device=flat.device) - first[owner]
    # Empty slots are written behind the end, into places that are cut off.
    slots = torch.full((blocks * block + total,), total, dtype=torch.int32, device=flat.device)
    slots[place] = order.to(torch.int32)
    owners = torch.searchsorted(ends, torch.arange(blocks, device=flat.device), right=True)
    filled = (ends[-1:] * block).to(torch.int32)
    return Sorted(slots[: blocks * block], owners.clamp(max=experts - 1).to(torch.int32), filled)


__all__ = ["Sorted", "local_slots", "sort"]
