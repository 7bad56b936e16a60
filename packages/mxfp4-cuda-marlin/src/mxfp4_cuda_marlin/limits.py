"""Sizes and names that verdicts need: importing this takes no torch."""

from __future__ import annotations

from typing import Final, Literal

from mxfp4_core.arithmetic import RULES
from mxfp4_core.config import PROFILE_NAMES, TIES

TILE: Final = 64
"""Rows and columns of a tile."""

SMALL_MAX: Final = 128
"""Largest scale byte of the fast form: 2^(byte - 1) must be a finite bfloat16."""

LARGE_MAX: Final = 252
"""Largest scale byte that the kernels represent, beside 255 (NaN): 6 * 2^(252 - 127) is a finite bfloat16."""

MAX_EXPERTS: Final = 1024
"""Experts on a rank: the routing kernel has a thread for each."""

MAX_TOP_K: Final = 1 << 16
"""Experts of a token."""

SIZE_MAX: Final = 2**31 - 1 - TILE
"""Largest n, k, rows of gate and up together, tiles of 64 rows over all experts, and entries of an expert map."""

PROFILES: Final = frozenset(PROFILE_NAMES) | {
    f"{rule}/{ties}" for rule in (*RULES, "ceil_d(7.25)") for ties in TIES
}
"""Every named profile of the core and every pair of a rule and a tie rule; of ``ceil_d`` only the usual limit."""

Rows = Literal["plain", "gate-up", "gate-up-interleaved"]
"""How the rows of a weight are ordered."""


def layout_id(rows: Rows = "plain") -> str:
    """Return the name of the layout and its variant."""
    return "sm90-64x64" + ("" if rows == "plain" else f"-{rows}")


def rows_of(interleaved: bool) -> Rows:
    """Return the order of the rows of a gate-up weight."""
    return "gate-up-interleaved" if interleaved else "gate-up"


__all__ = [
    "LARGE_MAX",
    "MAX_EXPERTS",
    "MAX_TOP_K",
    "PROFILES",
    "SIZE_MAX",
    "SMALL_MAX",
    "TILE",
    "Rows",
    "layout_id",
    "rows_of",
]
