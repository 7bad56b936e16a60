"""Which variant of the GEMM runs: sizes of tiles, stages and splits, from tables that were measured on an H200."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MULTIPROCESSORS: Final = 132
_SHARED: Final = 222 * 1024  # of the 227 KiB a block may have; the rest is for barriers and row tables
_SYSTEM: Final = 3 * 1024


@dataclass(frozen=True)
class Tile:
    """One variant of the GEMM.

    Attributes:
        nt: tokens in a tile: 8, 16, 32, 64, 128 or 256.
        wg: consumer warpgroups in a block.
        mb: strips of 64 output features for each of them.
    """

    nt: int
    wg: int = 2
    mb: int = 1

    @property
    def small(self) -> bool:
        """Say whether mma.sync is used, with one producer warp, instead of wgmma with a producer warpgroup."""
        return self.nt <= 16

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 128 * self.wg + (32 if self.small else 128)

    @property
    def features(self) -> int:
        """Output features of a block."""
        return 64 * self.wg * self.mb

    @property
    def blocks(self) -> int:
        """Blocks that share a multiprocessor."""
        if self.small:
            table = {1: 6, 2: 4, 4: 2} if self.nt == 8 else {1: 5, 2: 3, 4: 2}
            return table[self.wg * self.mb]
        return 1 if self.nt > 32 or self.mb * self.nt >= 64 else 2

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a stage: activations, codes and scales of 64 columns, in whole KiB for the swizzle."""
        raw = self.wg * self.mb * (2048 + 128) + self.nt * 128
        return -(-raw // 1024) * 1024

    @property
    def stages(self) -> int:
        """Stages in flight."""
        return max(2, min(16, (_SHARED // self.blocks - _SYSTEM) // self.stage_bytes))

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.stages * self.stage_bytes

    def defines(self, mode: int, small_scales: bool) -> dict[str, int]:
        """Return the macros of this variant; see the first lines of ``gemm.cu``."""
        return {
            "NT": self.nt,
            "WG": self.wg,
            "MB": self.mb,
            "STAGES": self.stages,
            "OCC": self.blocks,
            "SMALLM": int(self.small),
            "SMALL": int(small_scales),
            "MODE": mode,
        }


# Up to this many tokens: the tile. Of each, the best over the shapes of bench/hopper_dense.py.
LINEAR: Final = ((8, Tile(8, 2, 2)), (16, Tile(16, 2, 2)), (32, Tile(32, 2, 2)), (64, Tile(64, 2, 2)))
LARGE: Final = Tile(128, 2, 2)

# The same for experts, by the tokens that an expert gets on average, over the shapes of bench/hopper_moe.py.
MOE: Final = ((4, Tile(8)), (12, Tile(16, 2, 2)), (24, Tile(32)), (64, Tile(64, 2, 2)))
MOE_FEW: Final = Tile(8, 1, 1)
_FEW_SLOTS: Final = 64  # up to here narrow blocks are better, because they are more


def linear_tile(m: int) -> Tile:
    """Return the tile of a linear for m tokens."""
    return next((tile for most, tile in LINEAR if m <= most), LARGE)


def moe_tile(slots: int, experts: int) -> Tile:
    """Return the tile of both GEMMs of a MoE layer for ``slots`` pairs of token and expert."""
    if slots <= min(_FEW_SLOTS, 4 * experts):
        return MOE_FEW
    return next((tile for most, tile in MOE if slots <= most * experts), LARGE)


def splits(m: int, n: int, k: int, tile: Tile) -> int:
    """Return into how many parts a linear cuts k, so that few tiles still occupy every multiprocessor."""
    blocks = -(-n // tile.features) * -(-m // tile.nt)
    most = max(1, min(MULTIPROCESSORS * tile.blocks // blocks, k // 64 // 4, 8))
    return 1 << (most.bit_length() - 1)


def linear_variants() -> list[Tile]:
    """Return every tile that a linear may use."""
    return [*(tile for _, tile in LINEAR), LARGE]


def moe_variants() -> list[Tile]:
    """Return every tile that a MoE layer may use."""
    return [MOE_FEW, *(tile for _, tile in MOE), LARGE]


__all__ = ["Tile", "linear_tile", "linear_variants", "moe_tile", "moe_variants", "splits"]
