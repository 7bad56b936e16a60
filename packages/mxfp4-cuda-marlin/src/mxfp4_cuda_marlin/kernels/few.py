"""Which variant of the kernel for few tokens runs: tables that were measured on an H200."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TOKEN: Final = 3
"""Mode of ``decode.cu`` beside those of the GEMM: down for all slots of a token."""

TOP_K_MOST: Final = 32
"""Experts of a token up to which one block can sum over them."""


@dataclass(frozen=True)
class Few:
    """One variant of ``decode.cu``.

    Attributes:
        tokens: in a tile: 1, 8 or 16.
        groups: of 16 rows, for each warp: 1, 2 or 4.
        teams: of warps, which divide k.
        blocks: that share a multiprocessor.
        across: warps of a team, beside each other in rows.
        depth: tiles of 64 columns in flight for each warp.
    """

    tokens: int
    groups: int
    teams: int
    blocks: int
    across: int = 1
    depth: int = 2

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.across * self.teams

    @property
    def features(self) -> int:
        """Output features of a block."""
        return 16 * self.groups * self.across

    def blocks_of(self, n: int) -> int:
        """Return how many blocks n features are."""
        return -(-n // self.features)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block: for each team its tokens in flight, then its part of the sum."""
        stages = self.depth + (self.across > 1)
        return self.teams * self.tokens * max(128 * stages, 4 * self.features)

    def defines(self, mode: int, small_scales: bool) -> dict[str, int]:
        """Return the macros of this variant; see the first lines of ``decode.cu``."""
        return {
            "NT": max(self.tokens, 8),
            "ONE": int(self.tokens == 1),
            "G": self.groups,
            "WR": self.across,
            "WK": self.teams,
            "DEPTH": self.depth,
            "OCC": self.blocks,
            "SMALL": int(small_scales),
            "MODE": mode,
        }


# Up to this many strips of 64 features: the variant for one token, for 8, for 16. In narrow layers more warps divide k.
_LINEAR: Final = (
    (66, Few(1, 2, 16, 1, depth=3), Few(8, 2, 16, 1, depth=3), Few(16, 2, 16, 1)),
    (132, Few(1, 4, 16, 1), Few(8, 4, 16, 1), Few(16, 4, 16, 1)),
    (264, Few(1, 4, 8, 2), Few(8, 4, 8, 2), Few(16, 4, 8, 2)),
    (1 << 31, Few(8, 2, 4, 7), Few(8, 2, 4, 7), Few(16, 4, 4, 4)),
)

# Gate-up and down of a MoE layer. One token a tile: each slot is a tile of gate-up, and down sums over the slots of a
# token itself. Else slots are grouped by expert.
_EACH: Final = (Few(1, 4, 4, 4), Few(1, 2, 16, 1, depth=3))
_EACH_NARROW: Final = (_EACH[0], Few(1, 1, 16, 1, depth=4))
_NARROW_FEATURES: Final = 16 * 132
_BY_8: Final = (Few(8, 4, 4, 5),) * 2
_BY_16: Final = (Few(16, 4, 2, 4, across=2), Few(16, 4, 4, 2, across=2))
_MOST_BY_8: Final = 4  # tokens that an expert gets on average
_MOST_BY_16: Final = 12


def linear_few(m: int, n: int) -> Few | None:
    """Return the variant for m tokens and n features, or None where this kernel does not serve them."""
    if m > 16:
        return None
    one, eight, sixteen = next(variants for most, *variants in _LINEAR if n <= 64 * most)
    return one if m == 1 else eight if m <= 8 else sixteen


def moe_few(m: int, top_k: int, experts: int, features: int) -> tuple[Few, Few] | None:
    """Return the variants of gate-up and down, or None where this kernel does not serve a layer.

    Args:
        m: tokens.
        top_k: experts of a token.
        experts: on this rank.
        features: of the output of down.
    """
    slots = m * top_k
    if (m == 1 or 8 * slots <= experts) and top_k <= TOP_K_MOST:
        return _EACH_NARROW if features <= _NARROW_FEATURES else _EACH
    if slots <= _MOST_BY_8 * experts:
        return _BY_8
    return _BY_16 if slots <= _MOST_BY_16 * experts else None


def linear_fews() -> list[Few]:
    """Return every variant that a linear may use."""
    return list(dict.fromkeys(variant for _, *variants in _LINEAR for variant in variants))


def moe_fews() -> list[tuple[Few, Few]]:
    """Return every pair of variants that a MoE layer may use."""
    return [_EACH, _EACH_NARROW, _BY_8, _BY_16]


__all__ = ["TOKEN", "TOP_K_MOST", "Few", "linear_few", "linear_fews", "moe_few", "moe_fews"]
