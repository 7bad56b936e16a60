"""Launch the portable kernels: linear, and experts with their routing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mxfp4_core.arithmetic import compiling
from mxfp4_core.backend import Gate
from mxfp4_petit.portable import interpreter, kernels, routing_kernels
from mxfp4_petit.portable.sizes import WIDEN_FROM, tile_of
from mxfp4_petit.portable.tiles import STAGES_HIP, Tile, exact_tile, linear_tile, moe_tiles

if interpreter.active():
    interpreter.mend()

_CHUNK = 1024
"""Ids that one program of the routing reads at a time."""

_WIDENED_ROWS = 64
"""Rows of a tile that is widened by itself."""


class Weight(NamedTuple):
    """A weight in ``PortableLayout``: codes int32 [(experts,) n, k/8], scales int32 [(experts,) n, k/128], bias.

    ``pairs`` is the variant, ``folded`` whether scales may be multiplied into operands of bfloat16, ``wide`` whether a
    code has 8 bits, so that codes are [(experts,) n, k/4].
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None
    pairs: bool = False
    folded: bool = False
    wide: bool = False


class Chosen(NamedTuple):
    """Which experts the tokens go to: ids int32 [m, top_k], map int32 [total] or None, weights float32 [m, top_k]."""

    ids: Tensor
    expert_map: Tensor | None
    weights: Tensor


def by_place(x: Tensor, counts: Tensor | None) -> Chosen:
    """Return the routes of rows [experts, rows, k] that are sorted by expert; the result is not weighted.

    Args:
        x: the rows.
        counts: int32 [experts], how many rows of each expert are read, or None for all.
    """
    experts, rows = x.shape[:2]
    ids = torch.arange(experts, dtype=torch.int32, device=x.device)[:, None].expand(experts, rows)
    if counts is not None:
        ids = torch.where(torch.arange(rows, device=x.device) < counts[:, None], ids, -1)
    return Chosen(ids.reshape(-1, 1).contiguous(), None, torch.ones(experts * rows, 1, device=x.device))


def with_shared(chosen: Chosen, experts: int, shared: int) -> Chosen:
    """Add the shared experts, which stand behind the others and see every token with weight 1.

    Args:
        chosen: by the router.
        experts: without the shared ones.
        shared: how many; with none the routes are returned as they are.
    """
    if not shared:
        return chosen
    ids, expert_map, weights = chosen
    if expert_map is not None:
        known = (ids >= 0) & (ids < len(expert_map))
        ids = torch.where(known, expert_map[torch.where(known, ids, 0).long()], -1)
    ids = torch.where((ids >= 0) & (ids < experts), ids, -1)
    last = torch.arange(experts, experts + shared, dtype=torch.int32, device=ids.device).expand(
        len(ids), shared
    )
    return Chosen(
        torch.cat((ids, last), 1), None, torch.cat((weights, torch.ones_like(last, dtype=torch.float32)), 1)
    )


def linear(x: Tensor, weight: Weight, tile: Tile | None = None) -> Tensor:
    """Return x [m, k] times a weight [n, k], [m, n] of the dtype of x.

    Args:
        x: bfloat16 or float16, contiguous, m >= 1, k in whole tiles.
        weight: of n rows.
        tile: another one than `linear_tile` chooses, which also keeps the weight from being widened in memory.
    """
    (m, k), n = x.shape, weight.codes.shape[0]
    if tile is None and _widens(x, weight):
        wide = widened(weight, x)
        return x @ wide.T if weight.bias is None else torch.addmm(weight.bias, x, wide.T)
    tile = tile or linear_tile(m, n, k)
    if torch.version.hip is not None and not _folded(x, weight):
        tile = exact_tile(tile)
    with launching(x):
        return _linear(x, weight, tile)


def _widens(x: Tensor, weight: Weight) -> bool:
    """Say whether the weight is widened in memory: where that is faster, exact, and a bias needs no second rounding."""
    here = x.is_cuda and torch.version.hip is None and weight.wide and len(x) >= WIDEN_FROM
    return here and _folded(x, weight) and (weight.bias is None or weight.bias.dtype is x.dtype)


def _linear(x: Tensor, weight: Weight, tile: Tile) -> Tensor:
    (m, k), n = x.shape, weight.codes.shape[0]
    out = x.new_empty(m, n)
    target = out if tile.split == 1 else x.new_empty((tile.split, m, n), dtype=torch.float32)
    biased = weight.bias is not None
    grid = (triton.cdiv(n, tile.rows), triton.cdiv(m, tile.tokens), tile.split)
    kernels.linear_kernel[grid](
        *(x, weight.codes, weight.scales, weight.bias, target, m, n, k),
        triton.cdiv(k // tile_of(weight.pairs), tile.split),
        BM=tile.tokens,
        BN=tile.rows,
        PARTIAL=tile.split > 1,
        BIASED=biased,
        **_how(tile, x, weight),
    )
    if tile.split > 1:
        kernels.sum_splits_kernel[(triton.cdiv(m * n, 1024),)](
            *(target, weight.bias, out, n, m * n), SPLIT=tile.split, BIASED=biased, SIZE=1024
        )
    return out


def widened(weight: Weight, x: Tensor) -> Tensor:
    """Return a weight whose scales may be folded as bfloat16 [n, k], exactly.

    Args:
        weight: of n rows.
        x: bfloat16, which it is to be multiplied by: says on which device, and whether its numbers come in pairs.
    """
    n, k = weight.codes.shape[0], weight.scales.shape[1] * 128
    out = x.new_empty(n, k)
    how = _how(Tile(0, _WIDENED_ROWS, 4, 1), x, weight)
    with launching(x):
        kernels.widen_kernel[(triton.cdiv(n, _WIDENED_ROWS), k // tile_of(weight.pairs))](
            *(weight.codes, weight.scales, out, n, k), BN=_WIDENED_ROWS, **how
        )
    return out


def moe(
    x: Tensor,
    gate_up: Weight,
    down: Weight,
    chosen: Chosen,
    gate: Gate,
    tiles: tuple[Tile, Tile] | None = None,
) -> Tensor:
    """Return the weighted sum over the chosen experts, [m, k] of the dtype of x.

    Args:
        x: bfloat16 or float16 [m, k], contiguous, m >= 1, k in whole tiles.
        gate_up: [experts, 2n, k]; without a gate [experts, n, k].
        down: [experts, k, n].
        chosen: by the router; what is no expert is an empty slot.
        gate: the activation.
        tiles: others than `moe_tiles` chooses, for the same number of tokens.
    """
    with launching(x):
        return _moe(x, gate_up, down, chosen, gate, tiles or moe_tiles(chosen.ids.numel(), len(down.codes)))


def _moe(
    x: Tensor,
    gate_up: Weight,
    down: Weight,
    chosen: Chosen,
    gate: Gate,
    tiles: tuple[Tile, Tile],
) -> Tensor:
    (m, k), (experts, n) = x.shape, (down.codes.shape[0], down.scales.shape[2] * 128)
    top_k, (first, second) = chosen.ids.shape[1], tiles
    pairs = m * top_k
    block_expert, block_pairs = _blocks(chosen, experts, first.tokens)
    hidden = x.new_empty(pairs, n)
    grid = (triton.cdiv(n, first.rows), len(block_expert))
    given = (x, *gate_up[:3], hidden, block_expert, block_pairs, n, k, top_k, float(gate.alpha))
    how = {
        **{"BM": first.tokens, "BN": first.rows, "FUNCTION": gate.function},
        "BIASED": gate_up.bias is not None,
        **_how(first, x, gate_up),
    }
    if gate.gated:
        clamp = {"INTERLEAVED": gate.interleaved, "LIMITED": gate.limit is not None}
        kernels.gate_up_kernel[grid](*given, float(gate.limit or 0.0), float(gate.up_offset), **clamp, **how)
    else:
        kernels.up_kernel[grid](*given, **how)
    results = x.new_empty(pairs, k)
    kernels.down_kernel[(triton.cdiv(k, second.rows), len(block_expert))](
        *(hidden, *down[:3], results, block_expert, block_pairs, k, n),
        BM=second.tokens,
        BN=second.rows,
        BIASED=down.bias is not None,
        **_how(second, x, down),
    )
    out = torch.empty_like(x)
    routing_kernels.combine_kernel[(triton.cdiv(k, 512), m)](
        *(results, chosen.ids, chosen.expert_map, chosen.weights, out, k, top_k),
        *(experts, _total(chosen), chosen.expert_map is not None, 512),
    )
    return out


@contextmanager
def launching(x: Tensor) -> Iterator[None]:
    """Launch on the device of x, and say what to do where Triton has no compiler for its launchers."""
    device = torch.cuda.device(x.device) if x.is_cuda else nullcontext()
    with device, compiling("a call of the backend 'petit'", "no other kernels of it do without"):
        yield


def _blocks(chosen: Chosen, experts: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the expert of each block, -1 for none, and its pairs [blocks, size], -1 where there are none left."""
    ids, pairs = chosen.ids, chosen.ids.numel()
    blocks = (pairs + min(pairs, experts) * (size - 1)) // size
    counts = ids.new_empty(experts)
    block_expert, block_pairs = ids.new_empty(blocks), ids.new_empty(blocks, size)
    common = experts, _total(chosen)
    mapped = chosen.expert_map is not None
    chunk = min(_CHUNK, triton.next_power_of_2(pairs))
    routing_kernels.count_kernel[(experts,)](
        ids, chosen.expert_map, counts, pairs, *common, MAPPED=mapped, CHUNK=chunk
    )
    routing_kernels.place_kernel[(experts,)](
        *(ids, chosen.expert_map, counts, block_expert, block_pairs, pairs, *common, blocks),
        MAPPED=mapped,
        CHUNK=chunk,
        EXPERTS=triton.next_power_of_2(experts),
        BM=size,
    )
    return block_expert, block_pairs


def _folded(x: Tensor, weight: Weight) -> bool:
    return weight.folded and x.dtype is torch.bfloat16


def _total(chosen: Chosen) -> int:
    return 0 if chosen.expert_map is None else len(chosen.expert_map)


def _how(tile: Tile, x: Tensor, weight: Weight) -> dict[str, Any]:
    hip = torch.version.hip is not None
    # NVIDIA's devices multiply two bfloat16 at a time; AMD's and the interpreter have float32 for it.
    packed = x.dtype is torch.bfloat16 and not hip and not interpreter.active()
    return {
        "num_warps": tile.warps,
        "num_stages": min(tile.stages, STAGES_HIP) if hip else tile.stages,
        "PAIRS": weight.pairs,
        "PACKED": packed,
        "FOLDED": _folded(x, weight),
        "WIDE": weight.wide,
    }


__all__ = ["Chosen", "Weight", "by_place", "linear", "moe", "widened", "with_shared"]
