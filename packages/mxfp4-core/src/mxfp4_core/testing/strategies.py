"""Hypothesis strategies: weights, shapes and shard splits."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from mxfp4_core.arithmetic import BLOCK

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def sizes(*, low: int = 1, high: int = 300) -> st.SearchStrategy[int]:
    """Draw n or m: mostly small, sometimes just beside a multiple of 16."""
    near = st.builds(
        lambda tile, off: max(low, min(high, 16 * tile + off)), st.integers(1, high // 16), st.integers(-1, 1)
    )
    return st.integers(low, high) | near


def ks(*, blocks: int = 8, tails: bool = False) -> st.SearchStrategy[int]:
    """Draw k: whole blocks, or with ``tails`` any size up to that many blocks."""
    whole = st.integers(1, blocks).map(lambda count: count * BLOCK)
    return whole | st.integers(1, blocks * BLOCK) if tails else whole


@st.composite
def weights(
    draw: st.DrawFn,
    *,
    dtype: torch.dtype | None = None,
    tails: bool = False,
    finite: bool = True,
    rows: int = 8,
) -> Tensor:
    """Draw a weight [n, k] from random bits, so that every exponent, subnormal and signed zero turns up.

    Args:
        draw: given by hypothesis.
        dtype: bfloat16, float16 or float32; one of them if None.
        tails: allow k that ends in the middle of a block.
        finite: replace NaN and infinity by zero.
        rows: largest n.
    """
    kind = draw(st.sampled_from(DTYPES)) if dtype is None else dtype
    n, k = draw(st.integers(1, rows)), draw(ks(blocks=3, tails=tails))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    width = torch.iinfo(_BITS[kind])
    bits = torch.randint(width.min, width.max + 1, (n, k), generator=generator, dtype=torch.int64)
    weight = bits.to(_BITS[kind]).view(kind)
    if draw(st.booleans()):  # weights as models have them, of one magnitude
        weight = (torch.randn(n, k, generator=generator) * 2.0 ** draw(st.integers(-20, 12))).to(kind)
    return torch.where(weight.isfinite(), weight, 0.0).to(kind) if finite else weight


@st.composite
def splits(draw: st.DrawFn, size: int, *, multiple: int = 1, most: int = 8) -> list[tuple[int, int]]:
    """Draw a way to cut ``size`` into consecutive ranges that begin at multiples, as shards arrive from a loader.

    Args:
        draw: given by hypothesis.
        size: what is cut.
        multiple: of every border but the last.
        most: largest number of ranges.
    """
    borders = list(range(multiple, size, multiple))
    count = draw(st.integers(0, min(most - 1, len(borders))))
    chosen = sorted(draw(st.permutations(borders))[:count]) if borders else []
    return list(zip([0, *chosen], [*chosen, size], strict=True))
