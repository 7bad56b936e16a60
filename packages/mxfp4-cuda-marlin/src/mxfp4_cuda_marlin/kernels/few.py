"""Which variant of the kernel for few tokens runs: tables that were measured on an H200."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

_T = TypeVar("_T")

TOKEN: Final = 3
"""Mode of ``decode.cu`` beside those of the GEMM: down for all slots of a token."""

TOP_K_MOST: Final = 32
"""Experts of a token up to which one block can sum over them."""


@dataclass(frozen=True)
class Few:
    """One variant of ``decode.cu``.

    Attributes:
        tokens: in a tile: 1, 8, 16 or 32.
        groups: of 16 rows: 1, 2 or 4.
        warps: of a block, which divide k.
        blocks: that share a multiprocessor.
        depth: tiles of 64 columns in flight for each warp.
        split: blocks that divide the experts of a token, for ``TOKEN`` only.
    """

    tokens: int
    groups: int
    warps: int
    blocks: int
    depth: int = 2
    split: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    @property
    def features(self) -> int:
        """Output features of a block."""
        return 16 * self.groups

    def blocks_of(self, n: int) -> int:
        """Return how many blocks n features are."""
        return n // self.features * self.split

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block: for each warp its tokens in flight, then its part of the sum."""
        return self.warps * self.tokens * max(128 * max(2, self.depth), 4 * self.features)

    def defines(self, mode: int, small_scales: bool) -> dict[str, int]:
        """Return the macros of this variant; see the first lines of ``decode.cu``."""
        return {
            "NT": max(self.tokens, 8),
            "ONE": int(self.tokens == 1),
            "G": self.groups,
            "WARPS": self.warps,
            "DEPTH": self.depth,
            "OCC": self.blocks,
            "SPLIT": self.split,
            "SMALL": int(small_scales),
            "MODE": mode,
        }


# Up to this many strips of 64 features: the variant up to this many tokens. In narrow layers more warps divide k, and
# more tokens are served, because the GEMM has too few blocks there.
_NARROW: Final = ((1, Few(1, 2, 32, 1, depth=1)), (8, Few(8, 2, 16, 1, depth=3)), (16, Few(16, 2, 16, 1)))
_LINEAR: Final = (
    (33, (*_NARROW, (64, Few(32, 2, 16, 1)))),
    (66, (*_NARROW, (32, Few(32, 2, 16, 1)))),
    (132, ((1, Few(1, 4, 28, 1, depth=1)), (8, Few(8, 4, 28, 1, depth=1)), (16, Few(16, 4, 16, 1)))),
    (264, ((1, Few(1, 4, 16, 2, depth=1)), (8, Few(8, 4, 8, 2)), (16, Few(16, 4, 8, 2)))),
    (1 << 31, ((8, Few(8, 2, 4, 7)),)),
)
# So few strips of so many columns are better divided by clusters of blocks, as the GEMM can, from 9 tokens on.
_DEEP_STRIPS: Final = 24
_DEEP: Final = 4096

# Experts with one token a tile, up to so many slots: each slot is a tile of gate-up, and down sums over the slots of a
# token itself. Gate-up up to this many blocks, of 64 features and one slot each; down up to this many strips of 64
# features.
_EACH_MOST: Final = 16
_EACH_UP: Final = (
    (264, Few(1, 2, 8, 3, depth=1)),
    (396, Few(1, 4, 8, 3, depth=1)),
    (1 << 62, Few(1, 4, 4, 7, depth=1)),
)
_EACH_DOWN: Final = (
    (33, Few(1, 1, 24, 1)),
    (48, Few(1, 2, 8, 3, depth=1, split=4)),
    (1 << 62, Few(1, 4, 24, 1, depth=1, split=2)),
)
# Slots grouped by expert: up to this many blocks, of 64 features and one expert each, more warps divide k.
_BY_8: Final = (
    (264, Few(8, 2, 16, 2, depth=1)),
    (528, Few(8, 4, 8, 4, depth=1)),
    (1 << 62, Few(8, 4, 4, 7, depth=1)),
)
_MOST: Final = 6  # tokens that an expert gets on average


def _up_to(table: tuple[tuple[int, _T], ...], size: int) -> _T | None:
    return next((entry for most, entry in table if size <= most), None)


def linear_few(m: int, n: int, k: int) -> Few | None:
    """Return the variant for m tokens, n features and k columns, or None where this kernel does not serve them."""
    strips = -(-n // 64)
    if strips <= _DEEP_STRIPS and k > _DEEP and m > 8:
        return None
    table = _up_to(_LINEAR, strips)
    return None if table is None else _up_to(table, m)


def moe_few(m: int, top_k: int, experts: int, n: int, k: int, total: int = 0) -> tuple[Few, Few] | None:
    """Return the variants of gate-up and down, or None where this kernel does not serve a layer.

    Args:
        m: tokens.
        top_k: experts of a token.
        experts: on this rank.
        n: intermediate size.
        k: hidden size.
        total: experts of all ranks, if slots go to others, too.
    """
    slots, up_strips, down_strips, total = m * top_k, n // 32, k // 64, max(total, experts)
    if (m == 1 or (8 * slots <= total and slots <= _EACH_MOST)) and top_k <= TOP_K_MOST:
        up, down = _up_to(_EACH_UP, slots * up_strips), _up_to(_EACH_DOWN, down_strips)
    elif slots <= _MOST * total:
        active = max(1, min(slots, total) * experts // total)
        up, down = _up_to(_BY_8, active * up_strips), _up_to(_BY_8, active * down_strips)
    else:
        return None
    return None if up is None or down is None else (up, down)


def linear_fews() -> list[Few]:
    """Return every variant that a linear may use."""
    return list(dict.fromkeys(few for _, table in _LINEAR for _, few in table))


def moe_fews() -> list[tuple[Few, Few]]:
    """Return pairs of variants for a MoE layer that have each that it may use."""
    each = [(up, down) for (_, up), (_, down) in zip(_EACH_UP, _EACH_DOWN, strict=True)]
    return [*each, *((few, few) for _, few in _BY_8)]


__all__ = ["TOKEN", "TOP_K_MOST", "Few", "linear_few", "linear_fews", "moe_few", "moe_fews"]
