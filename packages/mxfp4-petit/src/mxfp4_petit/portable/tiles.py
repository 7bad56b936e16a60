"""Which tile serves a layer, by the number of tokens: measured on an H200, without spills on gfx90a and gfx942."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

_WARPS: Final = 1300
"""Warps that should run at least, so that every processor has several programs; K is split until there are as many."""

STAGES_HIP: Final = 2
"""Loads in flight on AMD's devices at most, which have 64 KiB of shared memory."""


@dataclass(frozen=True)
class Tile:
    """What one program computes, and how.

    Attributes:
        tokens: columns of the result, a power of two from 16.
        rows: rows of the weight, a power of two from 16.
        warps: warps of a program.
        stages: loads in flight; see ``STAGES_HIP``.
        split: parts of K that are summed by other programs; 1 for experts.
    """

    tokens: int
    rows: int
    warps: int = 4
    stages: int = 3
    split: int = 1


def linear_tile(m: int, n: int, k: int) -> Tile:
    """Choose for x [m, k] and a weight [n, k]."""
    few = Tile(16, 128, 4, 3) if m <= 16 else Tile(32, 128, 8, 3)
    tile = few if m <= 32 else Tile(64, 128, 8, 2)
    warps, split = -(-n // tile.rows) * -(-m // tile.tokens) * tile.warps, 1
    while warps * split < _WARPS and split <= k // 1024:
        split *= 2
    return replace(tile, split=split)


def exact_tile(tile: Tile) -> Tile:
    """Return the tile that serves a linear instead on AMD's devices where scales are not folded, without spills."""
    return replace(tile, warps=4) if tile.tokens == 32 else tile


def moe_tiles(pairs: int, experts: int) -> tuple[Tile, Tile]:
    """Choose for gate-up and down.

    Args:
        pairs: tokens times experts per token.
        experts: in the stacks.
    """
    if pairs <= 10 * experts:
        return Tile(16, 32, 2, 3), Tile(16, 64, 4, 3)
    if pairs <= 24 * experts:
        return Tile(32, 64, 4, 3), Tile(32, 128, 8, 3)
    return Tile(64, 64, 4, 3), Tile(64, 64, 4, 3)


__all__ = ["STAGES_HIP", "Tile", "exact_tile", "linear_tile", "moe_tiles"]
