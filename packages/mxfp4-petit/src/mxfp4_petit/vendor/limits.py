"""What petit-kernel takes, and the versions that were compared. Nothing here imports torch."""

from __future__ import annotations

from typing import Final

PROVEN: Final = ("0.0.3", "0.0.5")
"""The dense layout of both was compared: 0.0.3 with its source, 0.0.5 with what its machine code computes."""

FORMAT: Final = "mxfp4"
"""Of the weights."""

LAYOUT: Final = "petit-kernel-0.0.3"
"""Id of the dense layout, by the version that introduced it."""

LOWEST: Final = 17
HIGHEST: Final = 247
"""Scale bytes that are exact in low and in high precision, on CDNA2 and CDNA3, whether subnormals are flushed or not.
Outside, results are silently wrong: zero, cut, NaN, or of another sign."""

SOLUTION: Final = -1
"""Let petit-kernel choose: high precision on gfx90a. By an id, low precision there gives twice the result."""

__all__ = ["FORMAT", "HIGHEST", "LAYOUT", "LOWEST", "PROVEN", "SOLUTION"]
