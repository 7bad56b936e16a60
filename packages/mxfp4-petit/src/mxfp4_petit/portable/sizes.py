"""Sizes that the kernels and their layout share. Nothing here imports torch."""

from __future__ import annotations

from typing import Final


def tile_of(pairs: bool) -> int:
    """Return the columns of a tile of K in a variant of the layout."""
    return 128 if pairs else 256


def layout_id(pairs: bool) -> str:
    """Return the id of a variant of the layout."""
    return "portable-k128-pairs" if pairs else "portable-k256"


SIZE_MAX: Final = 2**31 - 1
"""Rows, columns and slots are counted in 32 bits."""

MOST_EXPERTS: Final = 4096
"""On a rank: each program of the routing reads the counts of all."""

FOLDED_LEAST: Final = 2
"""Lowest scale byte for which no code times the scale is subnormal as bfloat16, which gfx90a flushes."""

FOLDED_MOST: Final = 128
"""Highest for which 2^(byte - 1), by which the bits of codes are multiplied, is finite."""

EXTREME: Final = "extreme_scales"
"""What the scales are called where one of them is outside."""

__all__ = ["EXTREME", "FOLDED_LEAST", "FOLDED_MOST", "MOST_EXPERTS", "SIZE_MAX", "layout_id", "tile_of"]
