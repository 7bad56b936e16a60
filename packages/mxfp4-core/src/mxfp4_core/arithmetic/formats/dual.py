"""The format ``mxfp4-dual``: ``mxfp4`` under an FP32 scale for each 512 values, as Ascend multiplies it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from mxfp4_core.arithmetic.format import GROUP
from mxfp4_core.arithmetic.formats.base import Part, Parts
from mxfp4_core.arithmetic.formats.core import CoreFormat
from mxfp4_core.arithmetic.formats.mxfp4 import CODES, SCALES

if TYPE_CHECKING:
    import torch

    from mxfp4_core.arithmetic.fast.blocks import Way
    from mxfp4_core.arithmetic.profile import Profile


class Mxfp4Dual(CoreFormat):
    """The parts of ``mxfp4``, and ``level0`` float32 ``[..., N, K/512]``; K is padded to whole groups of 512."""

    name = "mxfp4-dual"
    parts = (CODES, SCALES, Part("level0", "_level0", "float32", 4, GROUP))
    block = GROUP

    def input_format(self, activation: str) -> str:
        """Two levels where one is asked for: a device that multiplies two levels wants them on both sides."""
        return self.name if activation == "mxfp4" else activation

    @property
    def profiles(self) -> tuple[str, ...]:
        """The peers of two levels, ``ascend`` first, and every pair, whose outer level is then that of ``ascend``."""
        from mxfp4_core.arithmetic.peers import DUAL_PEERS
        from mxfp4_core.arithmetic.profiles import pairs

        return (*(profile.name for profile in DUAL_PEERS), *pairs())

    def resolve(
        self, profile: str | None = None, *, rule: str | None = None, ties: str | None = None
    ) -> Profile:
        """Return a profile of two levels; ``ascend`` if nothing is named, ``floor`` if only ties are."""
        from mxfp4_core.arithmetic.peers import DUAL_PEERS
        from mxfp4_core.arithmetic.profiles import resolve_among

        return resolve_among(self, DUAL_PEERS, profile, rule=rule, ties=ties)

    @cached_property
    def way(self) -> Way:
        """The fast path."""
        from mxfp4_core.arithmetic.fast.dual import DUAL

        return DUAL

    def dequantize(self, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Return the values code x 2**(byte - 127) x level0: exact, rounded to float32, then to ``dtype``."""
        from mxfp4_core.arithmetic.fast.decode import dequantize_dual

        found = self.raw(parts)
        return dequantize_dual(found["codes"], found["scales"], found["level0"], dtype)


MXFP4_DUAL = Mxfp4Dual()

__all__ = ["MXFP4_DUAL", "Mxfp4Dual"]
