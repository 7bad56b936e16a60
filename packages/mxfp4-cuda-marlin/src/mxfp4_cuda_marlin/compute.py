"""Linear and MoE on the device: workspaces from torch's allocator, kernels on the current stream.

Nothing is shared between calls, so streams and captured graphs need no locks. Sums run in a fixed order.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from mxfp4_cuda_marlin import small
from mxfp4_cuda_marlin.checks import (
    MAX_EXPERTS,
    Weight,
    check_limit,
    check_linear,
    check_moe,
    has_small_scales,
    sizes,
)
from mxfp4_cuda_marlin.kernels import load
from mxfp4_cuda_marlin.kernels.few import linear_few, moe_few
from mxfp4_cuda_marlin.kernels.tiles import DOWN, GATE_UP, LINEAR, Tile, linear_tile, moe_tiles, most_tiles

_SLOTS: Final = 1 << 18  # tokens, or pairs of token and expert, in one pass: bounds its workspaces to some GB
_ITEMS: Final = 1 << 30  # tiles of tokens times blocks of features, likewise
_WIDE: Final = 2048  # slots from which routing takes a cluster of blocks


def linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``x @ weight.T + bias``; see ``ops.linear``."""
    check_linear(x, (codes, scales, bias))
    n, k = sizes(codes)
    x, out = _aligned(x), x.new_empty((x.shape[0], n))
    step = _step(n, 1)
    with torch.cuda.device(x.device):
        for start in range(0, x.shape[0], step):
            some, into = x[start : start + step], out[start : start + step]
            few = linear_few(some.shape[0], n, k)
            if few is None:
                tile = linear_tile(some.shape[0], n, k, load.multiprocessors(x.device))
                _linear(some, codes, scales, bias, into, tile)
            else:
                small.linear(some, (codes, scales, bias), into, few)
    return out


def _linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, out: Tensor, tile: Tile) -> None:
    (m, k), n = x.shape, out.shape[1]
    tiles = -(-m // tile.nt)
    load.launch(
        load.gemm(x.device, tile, LINEAR, has_small_scales(scales)),
        tile.grid(tiles * tile.blocks(n), load.multiprocessors(x.device)),
        tile.threads,
        tile.shared_bytes(LINEAR),
        *(codes, scales, x, out, bias, None, None, None, None),
        *(m, n, k, tiles, 1.0, math.inf, 0.0, load.tensor_map(x.data_ptr(), m, k, tile.nt)),
    )


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
    x, out = _aligned(x), torch.empty_like(x)
    (k, n), top_k = sizes(down[0]), topk_ids.shape[1]
    alpha, limit, up_offset = gate
    form = (float(alpha), math.inf if limit is None else float(limit), float(up_offset))
    step, experts = _step(max(2 * n, k), top_k), gate_up[0].shape[0]
    total = 0 if expert_map is None else expert_map.shape[0]
    with torch.cuda.device(x.device):
        for start in range(0, x.shape[0], step):
            part = slice(start, start + step)
            m, routes = x[part].shape[0], (topk_ids[part], topk_weights[part], expert_map)
            few = moe_few(m, top_k, experts, n, k, total)
            if few is None:
                tiles = moe_tiles(m, top_k, experts, n, k, total, load.multiprocessors(x.device))
                _moe(x[part], gate_up, down, *routes, form, out[part], tiles)
            else:
                small.moe(x[part], gate_up, down, *routes, form, out[part], few)
    return out


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


def _moe(
    x: Tensor,
    gate_up: Weight,
    down: Weight,
    ids: Tensor,
    weights: Tensor,
    expert_map: Tensor | None,
    gate: tuple[float, float, float],
    out: Tensor,
    variants: tuple[Tile, Tile],
) -> None:
    (m, k), (_, n), top_k, experts = x.shape, sizes(down[0]), ids.shape[1], gate_up[0].shape[0]
    slots, nt = m * top_k, variants[0].nt
    tiles = most_tiles(slots, experts, nt)
    local, rows, owner, count = (ids.new_empty(size) for size in (slots, tiles * nt, tiles, 1))
    factors = weights.new_empty(tiles * nt)
    cluster, total = 8 if slots > _WIDE else 1, 0 if expert_map is None else expert_map.shape[0]
    route = load.routing(x.device, "route", cluster)
    tables = (ids, expert_map, weights, local, rows, factors, owner, count)
    load.launch(route, cluster, MAX_EXPERTS, 0, *tables, slots, experts, total, nt)

    gathered, hidden, result = (
        x.new_empty(tiles * nt * k),
        x.new_empty(tiles * nt * n),
        x.new_empty((slots, k)),
    )
    gather = load.routing(x.device, "gather")
    load.launch(gather, tiles * nt // 8, 256, 0, x, gathered, rows, count, k, nt, top_k, overlap=True)
    for mode, tile, source, target, (codes, scales, bias), width, depth in (
        (GATE_UP, variants[0], gathered, hidden, gate_up, 2 * n, k),
        (DOWN, variants[1], hidden, result, down, k, n),
    ):
        load.launch(
            load.gemm(x.device, tile, mode, has_small_scales(scales)),
            tile.grid(tiles * tile.blocks(width), load.multiprocessors(x.device)),
            tile.threads,
            tile.shared_bytes(mode),
            *(codes, scales, source, target, bias, owner, rows, count, factors),
            *(m, width, depth, tiles, *gate, load.no_map()),
            overlap=True,
        )
    combine = load.routing(x.device, "combine")
    load.launch(combine, -(-m * k // 2048), 256, 0, result, local, out, m, k // 8, top_k, overlap=True)


def _step(n: int, top_k: int) -> int:
    """Return how many tokens go through in one pass."""
    return max(1, min(_SLOTS, _ITEMS // (n // 64 + 1) * 32) // top_k)


def _aligned(x: Tensor) -> Tensor:
    return x if x.data_ptr() % 16 == 0 else x.clone()  # rows are copied 16 bytes at a time


__all__ = ["linear", "moe", "moe_bytes"]
