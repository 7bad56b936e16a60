"""Which tile serves a layer, by the number of tokens: measured on an H200, without spills on gfx90a and gfx942."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

_PROGRAMS: Final = 512
"""Programs that should run at least, so that every processor has several; K is split until there are as many."""


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
    tokens = next((size for size in (16, 32) if m <= size), 64)
    tile = Tile(tokens, 64, 4, 3) if m <= 64 else Tile(64, 128, 8, 3)
    programs, split = -(-n // tile.rows) * -(-m // tokens), 1
    while programs * split < _PROGRAMS and split <= k // 1024:
        split *= 2
    return replace(tile, split=split)


def moe_tiles(pairs: int, experts: int) -> tuple[Tile, Tile]:
    """Choose for gate-up and down.

    Args:
        pairs: tokens times experts per token.
        experts: in the stacks.
    """
    if pairs <= 10 * experts:
        return Tile(16, 32, 2, 3), Tile(16, 64, 4, 3)
    tokens = 32 if pairs <= 24 * experts else 64
    return Tile(tokens, 64, 4, 3), Tile(tokens, 64, 4, 3)


__all__ = ["STAGES_HIP", "Tile", "linear_tile", "moe_tiles"]
