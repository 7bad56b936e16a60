"""Sizes that the kernels and their layout share. Nothing here imports torch."""

from __future__ import annotations

from typing import Final

WIDE: Final = "mxfp8"
"""The format whose codes have 8 bits."""


def tile_of(pairs: bool) -> int:
    """Return the columns of a tile of K in a variant of the layout."""
    return 128 if pairs else 256


def layout_id(pairs: bool, wide: bool = False) -> str:
    """Return the id of a variant of the layout; ``wide`` is the one for codes of 8 bits."""
    return f"portable-{'mxfp8-' if wide else ''}{'k128-pairs' if pairs else 'k256'}"


def folded_bytes(wide: bool) -> tuple[int, int]:
    """Return the lowest and the highest scale byte that may be multiplied into operands of bfloat16.

    From the lowest on no code but 0 times the scale is subnormal, which gfx90a flushes; up to the highest, the factor
    that lifts the bits of a code, 2^(byte - 1) or 2^(byte - 7) for codes of 8 bits, is finite.
    """
    return (10, 134) if wide else (2, 128)


WIDEN_FROM: Final = 256
"""Tokens from which a linear of 8 bits on NVIDIA's devices is widened in memory, and multiplied by torch.

On an H200 that is faster from some 200 tokens on, and at 4096 by 2.3 to 2.4 (``bench/petit_mxfp8.py``)."""

SIZE_MAX: Final = 2**31 - 1
"""Rows, columns and slots are counted in 32 bits."""

MOST_EXPERTS: Final = 4096
"""On a rank: each program of the routing reads the counts of all."""

EXTREME: Final = "extreme_scales"
"""What the scales are called where one of them is outside of `folded_bytes`, or a code is NaN."""

__all__ = [
    "EXTREME",
    "MOST_EXPERTS",
    "SIZE_MAX",
    "WIDE",
    "WIDEN_FROM",
    "folded_bytes",
    "layout_id",
    "tile_of",
]
