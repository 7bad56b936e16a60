"""How each kernel is launched: its grid, and its arguments in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch

from mxfp4_cuda_marlin.checks import MAX_EXPERTS, Weight
from mxfp4_cuda_marlin.kernels import load
from mxfp4_cuda_marlin.kernels.few import Few
from mxfp4_cuda_marlin.kernels.launch import Argument, Given, Launch
from mxfp4_cuda_marlin.kernels.tiles import Tile

Gate = tuple[float, float, float]
"""Alpha, limit (infinite for none) and offset of up."""

NO_GATE: Final[Gate] = (1.0, math.inf, 0.0)
Ends = tuple[Given, Given]
"""What a product reads and what it writes."""


class Place(NamedTuple):
    """Where a call gives a packed weight.

    Attributes:
        codes: place of its address, as of the next two.
        scales: in the layout that ``small_scales`` says.
        bias: whose address is 0 where there is none.
        small_scales: see `has_small_scales`.
    """

    codes: Given
    scales: Given
    bias: Given
    small_scales: bool

    @classmethod
    def at(cls, first: int, small_scales: bool) -> Place:
        """Return three places in a row."""
        return cls(Given(first), Given(first + 1), Given(first + 2), small_scales)


def addresses(weight: Weight) -> tuple[int, int, int]:
    """Return where codes, scales and bias are now; 0 for no bias."""
    codes, scales, bias = weight
    return codes.data_ptr(), scales.data_ptr(), 0 if bias is None else bias.data_ptr()


def decode(
    device: torch.device,
    few: Few,
    mode: int,
    weight: Place,
    ends: Ends,
    tiles: int,
    tables: Sequence[Argument],
    counts: tuple[int, ...],
    gate: Gate,
    *,
    overlap: bool = False,
) -> Launch:
    """Prepare the kernel for few tokens; tables are ids, map, expert and slots of each tile, count, weights."""
    return Launch(
        load.decode(device, few, mode, weight.small_scales),
        few.blocks_of(counts[1]) * tiles,
        few.threads,
        few.shared_bytes,
        (*_operands(weight, ends), *tables, *counts, *gate),
        overlap=overlap,
    )


def gemm(
    device: torch.device,
    tile: Tile,
    mode: int,
    weight: Place,
    ends: Ends,
    tiles: int,
    tables: Sequence[Argument],
    rest: Sequence[Any],
    *,
    overlap: bool = False,
) -> Launch:
    """Prepare the GEMM; tables are expert and slots of each tile, count of tiles, weights of the router by slot."""
    return Launch(
        load.gemm(device, tile, mode, weight.small_scales),
        tile.grid(tiles * tile.blocks(rest[1]), load.multiprocessors(device)),
        tile.threads,
        tile.shared_bytes(mode),
        (*_operands(weight, ends), *tables, *rest),
        overlap=overlap,
    )


def _operands(weight: Place, ends: Ends) -> tuple[Argument, ...]:
    return (weight.codes, weight.scales, *ends, weight.bias)


def route(device: torch.device, cluster: int, tables: Sequence[Argument], counts: tuple[int, ...]) -> Launch:
    """Prepare the routing, by a cluster of so many blocks."""
    return Launch(load.routing(device, "route", cluster), cluster, MAX_EXPERTS, 0, (*tables, *counts))


def gather(
    device: torch.device, tables: tuple[Given, Given, Given, Given], tiles: int, k: int, nt: int, top_k: int
) -> Launch:
    """Prepare the copy of rows into tiles; tables are x, tiles, slots of each tile, count of tiles."""
    kernel = load.routing(device, "gather")
    return Launch(kernel, tiles * nt // 8, 256, 0, (*tables, k, nt, top_k), overlap=True)


def combine(
    device: torch.device, result: Given, local: Given, out: Given, m: int, k: int, top_k: int
) -> Launch:
    """Prepare the weighted sum over the slots of each token."""
    arguments = (result, local, out, m, k // 8, top_k)
    return Launch(load.routing(device, "combine"), -(-m * k // 2048), 256, 0, arguments, overlap=True)


__all__ = ["NO_GATE", "Ends", "Gate", "Place", "addresses", "combine", "decode", "gather", "gemm", "route"]
