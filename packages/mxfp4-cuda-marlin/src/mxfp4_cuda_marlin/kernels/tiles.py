"""Which variant of the GEMM runs: what each costs was measured on an H200, and the cheapest for the sizes is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Final

from mxfp4_cuda_marlin.limits import TILE

MULTIPROCESSORS: Final = 132
"""Of an H200 and of an H100 with SXM, where costs were measured; other SM90 parts have fewer."""

_SHARED: Final = 226 * 1024  # of the 227 KiB that a block may have
_STATIC: Final = 3 * 1024  # at most, for barriers and the weights of the router

LINEAR, GATE_UP, DOWN = 0, 1, 2
"""Modes of the GEMM, as ``gemm.cu`` numbers them."""


@dataclass(frozen=True)
class Tile:
    """One variant of the GEMM.

    Attributes:
        nt: tokens in a tile, a multiple of 16, at most 256.
        narrow: tokens that a tile with no more of them multiplies, a multiple of 16, at most nt.
        wg: consumer warpgroups in a block.
        mb: strips of 64 output features for each of them.
        cols: columns of 64 in a stage.
        split: blocks that cut k between them.
    """

    nt: int
    narrow: int
    wg: int = 2
    mb: int = 1
    cols: int = 1
    split: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block: consumers and one warpgroup of producers."""
        return 128 * (self.wg + 1)

    @property
    def features(self) -> int:
        """Output features of a block."""
        return TILE * self.wg * self.mb

    @property
    def stage_bytes(self) -> int:
        """Bytes of a stage: activations, codes and scales of its columns, in whole KiB for the swizzle."""
        raw = self.cols * (self.wg * self.mb * (2048 + 128) + self.nt * 128)
        return -(-raw // 1024) * 1024

    def _result_bytes(self, mode: int) -> int:
        if self.split > 1:
            return self.nt * (4 * self.features + 16)
        return self.nt * self.features if mode == GATE_UP else self.nt * (2 * self.features + 16)

    def stages(self, mode: int) -> int:
        """Return the stages in flight."""
        return min(16, (_SHARED - _STATIC - self._result_bytes(mode)) // self.stage_bytes)

    def shared_bytes(self, mode: int) -> int:
        """Return the dynamic shared memory of a block."""
        return self.stages(mode) * self.stage_bytes + self._result_bytes(mode)

    def defines(self, mode: int, small_scales: bool) -> dict[str, int]:
        """Return the macros of this variant; see the first lines of ``gemm.cu``."""
        return {
            "NT": self.nt,
            "WG": self.wg,
            "MB": self.mb,
            "NARROW": self.narrow,
            "COLS": self.cols,
            "SPLIT": self.split,
            "STAGES": self.stages(mode),
            "SMALL": int(small_scales),
            "MODE": mode,
        }

    def blocks(self, n: int) -> int:
        """Return how many blocks of strips n features are."""
        return -(-n // self.features)

    def grid(self, items: int, multiprocessors: int) -> int:
        """Return the blocks to launch: those that stay and take items, or a cluster for each item."""
        return items * self.split if self.split > 1 else min(items, multiprocessors)


# What an item of each variant costs while every multiprocessor has one: microseconds of 64 columns, of 64 columns of a
# narrow tile, both in a long run, when the device is at its limit of power, and those that do not depend on the columns
# (bench/hopper_tiles.py).
COST: Final = {
    Tile(16, 16, 2, 1, 4): (0.160, 0.160, 0.7),
    Tile(16, 16, 4, 1, 4): (0.261, 0.261, 1.0),
    Tile(32, 16, 2, 1, 4): (0.178, 0.155, 1.0),
    Tile(32, 16, 2, 2, 4): (0.316, 0.254, 1.8),
    Tile(32, 32, 4, 1, 4): (0.315, 0.315, 1.1),
    Tile(48, 32, 2, 1, 2): (0.224, 0.197, 1.2),
    Tile(48, 32, 2, 2, 2): (0.392, 0.350, 1.5),
    Tile(64, 48, 2, 1, 2): (0.254, 0.217, 1.4),
    Tile(64, 48, 2, 2, 2): (0.480, 0.410, 1.6),
    Tile(64, 64, 4, 1): (0.470, 0.470, 1.4),
    Tile(80, 64, 2, 1, 2): (0.286, 0.264, 1.4),
    Tile(80, 64, 2, 2, 2): (0.515, 0.458, 2.1),
    Tile(96, 80, 2, 1, 2): (0.315, 0.283, 1.5),
    Tile(96, 64, 2, 2): (0.610, 0.482, 2.3),
    Tile(112, 80, 2, 2): (0.685, 0.551, 2.3),
    Tile(128, 64, 2, 1): (0.390, 0.263, 1.7),
    Tile(128, 64, 2, 2): (0.715, 0.469, 3.0),
    Tile(144, 128, 2, 1): (0.435, 0.393, 1.7),
    Tile(144, 80, 2, 2): (0.785, 0.543, 3.2),
    Tile(144, 128, 2, 2): (0.785, 0.705, 3.2),
    Tile(160, 128, 2, 1): (0.468, 0.390, 2.0),
    Tile(160, 160, 2, 2): (0.873, 0.873, 3.4),
    Tile(192, 160, 2, 1): (0.560, 0.464, 2.1),
    Tile(224, 192, 2, 1): (0.655, 0.552, 2.4),
    Tile(256, 256, 2, 1): (0.752, 0.752, 2.6),
}
_CERTAIN: Final = 6.1  # from here on, erfc(-x) is 2 in float64
_MANY_WAVES: Final = 4  # from here on, items of unlike experts are taken to even out

# Microseconds more where blocks of a cluster add up their sums, and the share of the multiprocessors that such clusters
# can fill: each stays in one part of the chip, of 16 or 18 multiprocessors, or fewer.
SPLIT: Final = {2: (1.0, 1.0), 4: (1.3, 10 / 11), 8: (1.6, 10 / 11)}
_SPLIT_TILES: Final = (
    Tile(16, 16, 2, 1, 4),
    Tile(32, 16, 2, 1, 4),
    Tile(48, 32, 2, 1, 2),
    Tile(64, 48, 2, 1, 2),
    Tile(96, 80, 2, 1, 2),
    Tile(128, 64, 2, 1),
)

_SPLIT_COST: Final = {replace(tile, split=split): COST[tile] for tile in _SPLIT_TILES for split in SPLIT}


def cost(tile: Tile, k: int, waves: float, narrow: float = 0.0) -> float:
    """Estimate the microseconds of a GEMM.

    Args:
        tile: the variant.
        k: columns.
        waves: items in a row of each multiprocessor.
        narrow: share of them that are narrow.
    """
    full, less, item = COST[tile] if tile.split == 1 else _SPLIT_COST[tile]
    column = (1 - narrow) * full + narrow * less
    sums = SPLIT[tile.split][0] if tile.split > 1 else 0.0
    return waves * (k / TILE / tile.split * column + item + sums)


@lru_cache(maxsize=4096)
def linear_tile(m: int, n: int, k: int, multiprocessors: int = MULTIPROCESSORS) -> Tile:
    """Return the variant of a linear of n and k for m tokens."""
    return min(linear_variants(), key=lambda tile: linear_cost(tile, m, n, k, multiprocessors))


def linear_cost(tile: Tile, m: int, n: int, k: int, multiprocessors: int = MULTIPROCESSORS) -> float:
    """Estimate the microseconds of a linear; infinite where the variant cannot run."""
    if tile.split > k // TILE:
        return math.inf
    share = SPLIT[tile.split][1] if tile.split > 1 else 1.0
    clusters = max(1, int(multiprocessors * share) // tile.split)
    return cost(tile, k, math.ceil(tile.blocks(n) * -(-m // tile.nt) / clusters))


@lru_cache(maxsize=4096)
def moe_tiles(
    m: int,
    top_k: int,
    experts: int,
    n: int,
    k: int,
    total: int = 0,
    multiprocessors: int = MULTIPROCESSORS,
) -> tuple[Tile, Tile]:
    """Return the variants of gate-up and down, whose tiles have the same tokens.

    How many tiles there will be is known on the device alone; the choice goes by the average of random routing.

    Args:
        m: tokens.
        top_k: experts of a token.
        experts: on this rank.
        n: intermediate size.
        k: hidden size.
        total: experts of all ranks, if slots go to others, too.
        multiprocessors: of the device.
    """
    total = max(total, experts)
    best: list[tuple[float, Tile, Tile]] = []
    for nt, variants in _moe_variants():
        filled = [(tile, *expected_tiles(m * top_k, total, nt, tile.narrow)) for tile in variants]
        chosen = []
        for features, columns in ((2 * n, k), (k, n)):
            costs = []
            for tile, wide, narrow in filled:
                items = tile.blocks(features) * (wide + narrow) * experts / total
                waves = _waves(items / multiprocessors)
                costs.append((tile, cost(tile, columns, waves, narrow / (wide + narrow))))
            chosen.append(min(costs, key=lambda entry: entry[1]))
        (up, up_cost), (down, down_cost) = chosen
        best.append((up_cost + down_cost, up, down))
    _, up, down = min(best, key=lambda entry: entry[0])
    return up, down


@cache
def _moe_variants() -> list[tuple[int, list[Tile]]]:
    """Return the variants that a MoE layer may use, by the tokens of their tiles."""
    sizes = sorted({tile.nt for tile in moe_variants()})
    return [(nt, [tile for tile in moe_variants() if tile.nt == nt]) for nt in sizes]


def _waves(full: float) -> float:
    """Estimate how many items in a row a multiprocessor takes, of so many each on average."""
    return math.ceil(full) if full < _MANY_WAVES else full + 0.5


def most_tiles(slots: int, experts: int, nt: int) -> int:
    """Return how many tiles of nt slots there are at most: every tile but one of each expert is full."""
    return min(slots, experts) + slots // nt


@lru_cache(maxsize=1024)
def expected_tiles(slots: int, experts: int, nt: int, narrow: int) -> tuple[float, float]:
    """Return the tiles that random routing fills on average, by the normal law: wide ones, and narrow ones.

    Args:
        slots: pairs of token and expert.
        experts: of all ranks.
        nt: slots in a tile.
        narrow: slots that make a tile narrow, if it has no more; nt if none is.
    """
    mean = slots / experts
    spread = (math.sqrt(mean * (1 - 1 / experts)) or 1.0) * math.sqrt(2)

    def more(than: int) -> float:  # the share of experts with more slots
        return 0.5 * math.erfc((than + 0.5 - mean) / spread)

    # As many tiles as these are full in every expert: their shares are 1 to the last bit.
    certain = max(0, int((mean - 0.5 - _CERTAIN * spread - narrow) // nt) + 1)
    tiles, wide, full = float(certain), float(certain), certain * nt
    while True:  # an expert has its tile number i + 1 if it has more than i * nt slots
        some = more(full)
        tiles += some
        wide += some if narrow == nt else more(full + narrow)
        full += nt
        if full > mean and some < 1e-3:
            tiles, wide = max(1.5, tiles * experts), wide * experts
            return wide, max(0.0, tiles - wide)


def linear_variants() -> list[Tile]:
    """Return every variant that a linear may use."""
    return [*COST, *_SPLIT_COST]


def moe_variants() -> list[Tile]:
    """Return every variant that a MoE layer may use."""
    return list(COST)


__all__ = [
    "COST",
    "DOWN",
    "GATE_UP",
    "LINEAR",
    "MULTIPROCESSORS",
    "Tile",
    "cost",
    "expected_tiles",
    "linear_cost",
    "linear_tile",
    "linear_variants",
    "moe_tiles",
    "moe_variants",
    "most_tiles",
]
