"""Linear and MoE on the device: workspaces from torch's allocator, kernels on the current stream.

Nothing is shared between calls, so streams and captured graphs need no locks. Sums run in a fixed order.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from mxfp4_cuda_marlin.checks import MAX_EXPERTS, Weight, check_limit, check_linear, check_moe, sizes
from mxfp4_cuda_marlin.kernels import load
from mxfp4_cuda_marlin.kernels.tiles import Tile, linear_tile, moe_tile, splits

_GRID_Y: Final = 65535
_SLOTS: Final = (
    1 << 21
)  # pairs of token and expert in one pass: keeps 32-bit row numbers and the grid in range


def linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``x @ weight.T + bias``; see ``ops.linear``."""
    check_linear(x, (codes, scales, bias))
    n, _ = sizes(codes)
    x, out = _aligned(x), x.new_empty((x.shape[0], n))
    with torch.cuda.device(x.device):
        tile = linear_tile(x.shape[0])
        step = _GRID_Y * tile.nt
        for start in range(0, x.shape[0], step):
            _linear(x[start : start + step], codes, scales, bias, out[start : start + step], tile)
    return out


def _linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, out: Tensor, tile: Tile) -> None:
    (m, k), n = x.shape, out.shape[1]
    parts, tiles = splits(m, n, k, tile), math.ceil(m / tile.nt)
    partial = None if parts == 1 else x.new_empty((parts, tiles * tile.nt, n), dtype=torch.float32)
    load.launch(
        load.gemm(x.device, tile, load.LINEAR, _small(scales)),
        (math.ceil(n / tile.features), tiles, parts),
        tile.threads,
        tile.shared_bytes,
        *(codes, scales, x, out, bias if parts == 1 else None, None, None, None, None, None, partial, None),
        *(m, n, k, 1, parts, 1.0, math.inf, 0.0),
    )
    if partial is not None:
        reduce = load.helper(x.device, "reduce_splits")
        grid = (math.ceil(m * n / 512), 1, 1)
        load.launch(reduce, grid, 256, 0, partial, out, bias, m, n, tiles * tile.nt, parts)


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
    step = max(1, min(_SLOTS // topk_ids.shape[1], x.shape[0]))
    with torch.cuda.device(x.device):
        for start in range(0, x.shape[0], step):
            part = slice(start, start + step)
            _moe(x[part], gate_up, down, topk_ids[part], topk_weights[part], expert_map, gate, out[part])
    return out


def _moe(
    x: Tensor,
    gate_up: Weight,
    down: Weight,
    ids: Tensor,
    weights: Tensor,
    expert_map: Tensor | None,
    gate: tuple[float, float | None, float],
    out: Tensor,
) -> None:
    (m, k), (_, n), top_k, experts = x.shape, sizes(down[0]), ids.shape[1], gate_up[0].shape[0]
    slots, tile = m * top_k, moe_tile(m * top_k, experts)
    # Every tile but one of each expert is full, so there are at most this many.
    tiles = min(slots, experts) + slots // tile.nt
    local, rows, owner, first, count = (
        ids.new_empty(size) for size in (slots, tiles * tile.nt, tiles, tiles, 1)
    )
    total = 0 if expert_map is None else expert_map.shape[0]
    route = load.helper(x.device, "route")
    tables = (ids, expert_map, local, rows, owner, first, count)
    load.launch(route, (1, 1, 1), MAX_EXPERTS, 0, *tables, slots, experts, total, tile.nt)

    hidden, result = x.new_empty((slots, n)), x.new_empty((slots, k))
    alpha, limit, up_offset = gate
    form = (float(alpha), math.inf if limit is None else float(limit), float(up_offset))
    for mode, source, target, (codes, scales, bias), width, depth, factors in (
        (load.GATE_UP, x, hidden, gate_up, 2 * n, k, None),
        (load.DOWN, hidden, result, down, k, n, weights),
    ):
        load.launch(
            load.gemm(x.device, tile, mode, _small(scales)),
            (math.ceil(width / tile.features), tiles, 1),
            tile.threads,
            tile.shared_bytes,
            *(codes, scales, source, target, bias, owner, first, rows, count, factors, None, None),
            *(m, width, depth, top_k if mode == load.GATE_UP else 1, 1, *form),
        )
    combine = load.helper(x.device, "combine")
    load.launch(combine, (math.ceil(m * k / 512), 1, 1), 256, 0, result, local, out, m, k // 2, top_k)


def _small(scales: Tensor) -> bool:
    """Say whether all scale bytes are at most 128; the shape carries it (see ``layout``)."""
    return scales.shape[-1] == 128


def _aligned(x: Tensor) -> Tensor:
    return x if x.data_ptr() % 16 == 0 else x.clone()  # rows are copied 16 bytes at a time


__all__ = ["linear", "moe"]
