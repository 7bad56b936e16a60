"""Which kernel serves a layer, by the number of tokens, for ``mxfp4 doctor``: asked of the functions that choose."""

from __future__ import annotations

from collections.abc import Mapping

from mxfp4_core.backend import Choice, Problem
from mxfp4_core.kernels import tabulate
from mxfp4_core.shapes import padded
from mxfp4_cuda_marlin.kernels.tiles import Tile, linear_tile, moe_tile, splits
from mxfp4_cuda_marlin.layout import TILE

_MOST = 16384


def choices(problem: Problem) -> tuple[Choice, ...]:
    """Return the table for a linear or a MoE layer of these sizes; ``quantize`` has none."""
    if problem.op == "quantize":
        return ()
    return tabulate(lambda m: _one(problem, m), _MOST)


def _one(problem: Problem, m: int) -> tuple[str, Mapping[str, int | str]]:
    if problem.op == "moe":
        return _settings(moe_tile(m * problem.top_k, problem.experts))
    tile = linear_tile(m)
    kernel, settings = _settings(tile)
    n, k = padded(problem.n, TILE), padded(problem.k, TILE)
    return kernel, {**settings, "splits": splits(m, n, k, tile)}


def _settings(tile: Tile) -> tuple[str, dict[str, int | str]]:
    instruction = "mma.sync" if tile.small else "wgmma"
    return f"gemm {instruction}", {
        "tile_tokens": tile.nt,
        "tile_features": tile.features,
        "stages": tile.stages,
        "blocks_per_sm": tile.blocks,
    }


__all__ = ["choices"]
