"""Which kernel serves a layer, by the number of tokens, for ``mxfp4 doctor``: asked of the functions that choose."""

from __future__ import annotations

from collections.abc import Mapping

from mxfp4_core.arithmetic import padded
from mxfp4_core.backend import Choice, Problem, tabulate
from mxfp4_cuda_marlin.kernels.few import linear_few, moe_few
from mxfp4_cuda_marlin.kernels.tiles import Tile, linear_tile, moe_tiles
from mxfp4_cuda_marlin.limits import TILE

_MOST = 16384


def choices(problem: Problem) -> tuple[Choice, ...]:
    """Return the table for a linear or a MoE layer of these sizes; ``quantize`` has none."""
    if problem.op == "quantize":
        return ()
    return tabulate(lambda m: _one(problem, m), _MOST)


def _one(problem: Problem, m: int) -> tuple[str, Mapping[str, int | str]]:
    n, k = padded(problem.n, TILE), padded(problem.k, TILE)
    if problem.op == "moe":
        fews = moe_few(m, problem.top_k, problem.experts, n, k, problem.total_experts)
        if fews is not None:
            settings = {
                f"{name}_features": few.features for name, few in zip(("gate_up", "down"), fews, strict=True)
            }
            return "decode mma.sync", {"tile_tokens": fews[0].tokens, **settings}
        up, down = moe_tiles(m, problem.top_k, problem.experts, n, k, problem.total_experts)
        settings = {f"{name}_features": tile.features for name, tile in (("gate_up", up), ("down", down))}
        return "gemm wgmma", {"tile_tokens": up.nt, **settings}
    few = linear_few(m, n, k)
    if few is not None:
        return "decode mma.sync", {
            "tile_tokens": few.tokens,
            "tile_features": few.features,
            "splits": few.warps,
        }
    tile: Tile = linear_tile(m, n, k)
    return "gemm wgmma", {"tile_tokens": tile.nt, "tile_features": tile.features, "splits": tile.split}


__all__ = ["choices"]
