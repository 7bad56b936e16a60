"""Every kernel that NVRTC compiles for linear and MoE, for ``mxfp4 warmup``; Triton keeps its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from mxfp4_core.backend import Kernel, Kernels
from mxfp4_cuda_marlin.kernels import build, source
from mxfp4_cuda_marlin.kernels.few import TOKEN, linear_fews, moe_fews
from mxfp4_cuda_marlin.kernels.tiles import DOWN, GATE_UP, LINEAR, Tile, linear_variants, moe_variants

_MODES = {LINEAR: "linear", GATE_UP: "gate-up", DOWN: "down", TOKEN: "down of a token"}


def programs() -> Iterator[tuple[str, str, Mapping[str, int]]]:
    """Yield name, source and macros of each, the largest tiles first, because they take longest.

    Variants for scale bytes above 128, which no trained model has, are compiled when they are needed.
    """
    pairs = {(tile, LINEAR) for tile in linear_variants()}
    pairs |= {(tile, mode) for tile in moe_variants() for mode in (GATE_UP, DOWN)}
    for tile, mode in sorted(pairs, key=_cost, reverse=True):
        cut = f", k in {tile.split}" if tile.split > 1 else ""
        tokens = f"{tile.nt} tokens" if tile.narrow == tile.nt else f"{tile.nt} or {tile.narrow} tokens"
        name = f"gemm {_MODES[mode]}: {tokens} x {tile.features} features, {tile.wg} warpgroups{cut}"
        yield name, source.gemm(tile.nt, tile.narrow), tile.defines(mode, True)
    fews = {(few, LINEAR) for few in linear_fews()}
    for up, down in moe_fews():
        fews |= {(up, GATE_UP), (down, TOKEN if down.tokens == 1 else DOWN)}
    for few, mode in sorted(fews, key=lambda pair: (pair[0].tokens, pair[0].threads, pair[1]), reverse=True):
        shape = (
            f"{few.tokens} token{'s' if few.tokens > 1 else ''} x {few.features} features, {few.warps} warps"
        )
        cut = f", experts in {few.split}" if few.split > 1 else ""
        name = f"decode {_MODES[mode]}: {shape}, {few.depth} deep, {few.blocks} on a multiprocessor{cut}"
        yield name, source.decode(), few.defines(mode, True)
    for cluster in (1, 8):
        blocks = f"{cluster} block{'s' if cluster > 1 else ''}"
        yield f"route, gather, combine: {blocks} in a cluster", source.routing(), {"CLUSTER": cluster}


def kernels() -> Kernels:
    """List the kernels, and which of them the cache holds.

    Raises:
        BackendError: NVRTC is missing.
    """
    rows = tuple(
        Kernel(name, build.is_kept(text, defines), partial(build.compile_ahead, text, defines, name))
        for name, text, defines in programs()
    )
    return Kernels(str(build.cache_folder()), rows)


def _cost(pair: tuple[Tile, int]) -> tuple[int, ...]:
    tile, mode = pair
    return tile.nt * tile.mb, tile.wg, mode


__all__ = ["kernels", "programs"]
