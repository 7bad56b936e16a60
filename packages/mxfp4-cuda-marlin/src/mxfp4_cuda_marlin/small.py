"""Linear and MoE for few tokens, where reading the weights is what takes time: see ``kernels/decode.cu``.

The kernels of a MoE layer are launched so that each may begin while the one before ends; the first of a layer may not,
because its inputs come from kernels of others.
"""

from __future__ import annotations

import math

from torch import Tensor

from mxfp4_cuda_marlin.checks import MAX_EXPERTS, Weight, has_small_scales, sizes
from mxfp4_cuda_marlin.kernels import load
from mxfp4_cuda_marlin.kernels.few import TOKEN, Few
from mxfp4_cuda_marlin.kernels.tiles import DOWN, GATE_UP, LINEAR, most_tiles

_NO_GATE = (1.0, math.inf, 0.0)
# Ids, map, expert and slots of each tile, count of tiles, weights of the router.
_Tables = tuple[Tensor | None, ...]


def linear(x: Tensor, weight: Weight, out: Tensor, few: Few) -> None:
    """Write ``x @ weight.T + bias`` into ``out``, by the variant that ``few.linear_few`` returns."""
    (m, k), n = x.shape, out.shape[1]
    _launch(few, LINEAR, weight, x, out, -(-m // few.tokens), (None,) * 6, (m, n, k, 1, 1, 0), _NO_GATE)


def moe(
    x: Tensor,
    gate_up: Weight,
    down: Weight,
    ids: Tensor,
    weights: Tensor,
    expert_map: Tensor | None,
    gate: tuple[float, float, float],
    out: Tensor,
    fews: tuple[Few, Few],
) -> None:
    """Write a whole MoE layer into ``out``.

    Args:
        x: bfloat16 [m, k].
        gate_up: codes, scales and bias.
        down: codes, scales and bias.
        ids: int32 [m, top_k].
        weights: float32 [m, top_k].
        expert_map: int32 [total_experts] or None.
        gate: alpha, limit (infinite for none) and offset of up.
        out: bfloat16 [m, k].
        fews: variants for gate-up and down, as ``few.moe_few`` returns them.
    """
    (m, k), (_, n), (top_k, experts) = x.shape, sizes(down[0]), (ids.shape[1], gate_up[0].shape[0])
    slots, total = m * top_k, 0 if expert_map is None else expert_map.shape[0]
    (up, lower), routes, hidden = fews, (top_k, experts, total), x.new_empty((slots, n))
    wide, narrow = (m, 2 * n, k, *routes), (m, k, n, *routes)
    if up.tokens == 1:
        each: _Tables = (ids, expert_map, None, None, None, weights)
        _launch(up, GATE_UP, gate_up, x, hidden, slots, each, wide, gate)
        _launch(lower, TOKEN, down, hidden, out, m, each, narrow, _NO_GATE, overlap=True)
        return
    tiles = most_tiles(slots, experts, up.tokens)
    local, rows, owner, count = (ids.new_empty(size) for size in (slots, tiles * up.tokens, tiles, 1))
    made = (ids, expert_map, None, local, rows, None, owner, count)
    result = x.new_empty((slots, k))
    route, combine = load.routing(x.device, "route"), load.routing(x.device, "combine")
    load.launch(route, 1, MAX_EXPERTS, 0, *made, slots, experts, total, up.tokens)
    tables: _Tables = (None, None, owner, rows, count, weights)
    _launch(up, GATE_UP, gate_up, x, hidden, tiles, tables, wide, gate, overlap=True)
    _launch(lower, DOWN, down, hidden, result, tiles, tables, narrow, _NO_GATE, overlap=True)
    load.launch(combine, -(-m * k // 2048), 256, 0, result, local, out, m, k // 8, top_k, overlap=True)


def _launch(
    few: Few,
    mode: int,
    weight: Weight,
    x: Tensor,
    out: Tensor,
    tiles: int,
    tables: _Tables,
    counts: tuple[int, ...],
    gate: tuple[float, float, float],
    *,
    overlap: bool = False,
) -> None:
    codes, scales, bias = weight
    load.launch(
        load.decode(x.device, few, mode, has_small_scales(scales)),
        few.blocks_of(counts[1]) * tiles,
        few.threads,
        few.shared_bytes,
        *(codes, scales, x, out, bias, *tables, *counts, *gate),
        overlap=overlap,
    )


__all__ = ["linear", "moe"]
