"""How petit-kernel spreads the eight codes of a word: sign and magnitude of each to bits of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Offsets = Sequence[tuple[int, int]]
"""For each code of a word, the bit of its sign and the lowest bit of its magnitude."""


def spread(words: Tensor, offsets: Offsets) -> Tensor:
    """Move the codes of canonical words; the magnitudes of the upper four are reversed, and minus zero becomes zero.

    Args:
        words: int32, code i in bits 4i to 4i + 3.
        offsets: where they go.
    """
    out = torch.zeros_like(words)
    for i, (sign_bit, value_bit) in enumerate(offsets):
        code = words >> (4 * i)
        magnitude = code & 7
        sign = (code >> 3) & (magnitude != 0)
        out |= sign << sign_bit | (_reversed(magnitude) if i >= 4 else magnitude) << value_bit
    return out


def gather(words: Tensor, offsets: Offsets) -> Tensor:
    """Undo `spread`, but for minus zeros."""
    out = torch.zeros_like(words)
    for i, (sign_bit, value_bit) in enumerate(offsets):
        magnitude = (words >> value_bit) & 7
        code = ((words >> sign_bit) & 1) << 3 | (_reversed(magnitude) if i >= 4 else magnitude)
        out |= code << (4 * i)
    return out


def _reversed(magnitude: Tensor) -> Tensor:
    return (magnitude & 1) << 2 | magnitude & 2 | magnitude >> 2


__all__ = ["gather", "spread"]
