"""Linear and MoE on the device: workspaces from torch's allocator, kernels on the current stream.

Nothing is shared between calls, so streams and captured graphs need no locks. Sums run in a fixed order.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from mxfp4_cuda_marlin.checks import Weight, check_limit, check_linear, check_moe, has_small_scales, sizes
from mxfp4_cuda_marlin.kernels import load
from mxfp4_cuda_marlin.kernels.few import Few, linear_few, moe_few
from mxfp4_cuda_marlin.kernels.launch import stream_of
from mxfp4_cuda_marlin.kernels.tiles import Tile, linear_tile, moe_tiles, most_tiles
from mxfp4_cuda_marlin.launches import Gate, addresses
from mxfp4_cuda_marlin.plans import MoeSizes, linear_plan, moe_plan

_SLOTS: Final = 1 << 18  # tokens, or pairs of token and expert, in one pass: bounds its workspaces to some GB
_ITEMS: Final = 1 << 30  # tiles of tokens times blocks of features, likewise


def linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``x @ weight.T + bias``; see ``ops.linear``."""
    weight = codes, scales, bias
    check_linear(x, weight)
    n, k = sizes(codes)
    x, out = aligned(x), x.new_empty((x.shape[0], n))
    step = linear_step(n)
    with torch.cuda.device(x.device):
        for start in range(0, x.shape[0], step):
            some = x[start : start + step]
            variant = linear_variant(some.shape[0], n, k, load.multiprocessors(x.device))
            linear_into(some, weight, out[start : start + step], variant)
    return out


def linear_into(x: Tensor, weight: Weight, out: Tensor, variant: Few | Tile) -> None:
    """Write ``x @ weight.T + bias`` into ``out`` by one variant; all are as ``linear`` checks them."""
    (m, k), n = x.shape, out.shape[1]
    plan = linear_plan(x.device, m, n, k, has_small_scales(weight[1]), variant)
    plan(stream_of(x.device), x.data_ptr(), out.data_ptr(), addresses(weight))


@lru_cache(maxsize=4096)
def linear_variant(m: int, n: int, k: int, multiprocessors: int) -> Few | Tile:
    """Return the kernel for few tokens that serves these sizes, or the tile of the GEMM."""
    return linear_few(m, n, k) or linear_tile(m, n, k, multiprocessors)


def moe(
    x: Tensor,
    gate_up: Weight,
    down: Weight,
    topk_ids: Tensor,
    topk_weights: Tensor,
    expert_map: Tensor | None,
    gate: tuple[float, float | None, float],
) -> Tensor:
    """Compute a whole MoE layer; see ``ops.moe``.

    Args:
        x: bfloat16 [m, k].
        gate_up: codes, scales and bias.
        down: codes, scales and bias.
        topk_ids: int32 [m, top_k].
        topk_weights: float32 [m, top_k].
        expert_map: int32 [total_experts] or None.
        gate: alpha, limit and offset of up.
    """
    check_moe(x, gate_up, down, topk_ids, topk_weights, expert_map)
    check_limit(gate[1])
    x, out = aligned(x), torch.empty_like(x)
    step, form = moe_step(gate_up, down, topk_ids.shape[1]), gate_of(*gate)
    with torch.cuda.device(x.device):
        for start in range(0, x.shape[0], step):
            part = slice(start, start + step)
            moe_into(x[part], gate_up, down, topk_ids[part], topk_weights[part], expert_map, form, out[part])
    return out


def moe_into(
    x: Tensor,
    gate_up: Weight,
    down: Weight,
    ids: Tensor,
    weights: Tensor,
    expert_map: Tensor | None,
    gate: Gate,
    out: Tensor,
) -> None:
    """Write a MoE layer into ``out``; all are as ``moe`` checks them."""
    (m, k), (_, n), top_k, experts = x.shape, sizes(down[0]), ids.shape[1], gate_up[0].shape[0]
    device, total = x.device, 0 if expert_map is None else expert_map.shape[0]
    call = MoeSizes(m, top_k, experts, n, k, total)
    variants = moe_variant(*call, load.multiprocessors(device))
    small_scales = has_small_scales(gate_up[1]), has_small_scales(down[1])
    plan = moe_plan(device, call, small_scales, gate, variants)
    workspace = x.new_empty(plan.bytes, dtype=torch.uint8)
    given = plan.given(
        x.data_ptr(),
        out.data_ptr(),
        ids.data_ptr(),
        weights.data_ptr(),
        0 if expert_map is None else expert_map.data_ptr(),
        addresses(gate_up),
        addresses(down),
        workspace.data_ptr(),
    )
    plan(stream_of(device), given)


@lru_cache(maxsize=4096)
def moe_variant(
    m: int, top_k: int, experts: int, n: int, k: int, total: int, multiprocessors: int
) -> tuple[Few, Few] | tuple[Tile, Tile]:
    """Return the kernels for gate-up and down: those for few tokens where they serve these sizes, or tiles."""
    few = moe_few(m, top_k, experts, n, k, total)
    return few or moe_tiles(m, top_k, experts, n, k, total, multiprocessors)


def moe_bytes(m: int, top_k: int, experts: int, n: int, k: int, total: int = 0) -> int:
    """Return the bytes of the workspaces of a MoE layer, without tables of a few integers a slot; a linear has none.

    Args:
        m: tokens.
        top_k: experts of a token.
        experts: on this rank.
        n: intermediate size, padded.
        k: hidden size, padded.
        total: experts of all ranks, if slots go to others, too.
    """
    m = min(m, _step(max(2 * n, k), top_k))
    slots, few = m * top_k, moe_few(m, top_k, experts, n, k, total)
    if few is not None:
        return 2 * slots * (n + k)
    nt = moe_tiles(m, top_k, experts, n, k, total)[0].nt
    return 2 * (most_tiles(slots, experts, nt) * nt * (n + k) + slots * k)


def gate_of(alpha: float, limit: float | None, up_offset: float) -> Gate:
    """Return a gate as the kernels take it."""
    return float(alpha), math.inf if limit is None else float(limit), float(up_offset)


def linear_step(n: int) -> int:
    """Return how many tokens of a linear with n features go through in one pass."""
    return _step(n, 1)


def moe_step(gate_up: Weight, down: Weight, top_k: int) -> int:
    """Return how many tokens of a MoE layer go through in one pass."""
    return _step(max(sizes(gate_up[0])[0], sizes(down[0])[0]), top_k)


def _step(n: int, top_k: int) -> int:
    return max(1, min(_SLOTS, _ITEMS // (n // 64 + 1) * 32) // top_k)


def aligned(x: Tensor) -> Tensor:
    """Return x, or a copy of it where its rows cannot be copied 16 bytes at a time."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


__all__ = [
    "aligned",
    "gate_of",
    "linear",
    "linear_into",
    "linear_step",
    "linear_variant",
    "moe",
    "moe_bytes",
    "moe_into",
    "moe_step",
    "moe_variant",
]
