"""The format ``mxfp8``: E4M3 elements, one E8M0 scale for each 32 of them. OCP MX v1.0, section 5.2, table 1."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.arithmetic.formats.base import Part, Parts
from mxfp4_core.arithmetic.formats.core import CoreFormat
from mxfp4_core.arithmetic.formats.mxfp4 import SCALES

if TYPE_CHECKING:
    import torch

    from mxfp4_core.arithmetic.fast.blocks import Way
    from mxfp4_core.arithmetic.profile import Profile


class Mxfp8(CoreFormat):
    """``codes`` float8_e4m3fn ``[..., N, K]`` and ``scales`` uint8 E8M0 ``[..., N, K/32]``."""

    name = "mxfp8"
    parts = (Part("codes", "", "float8_e4m3fn", 1, 1), SCALES)
    block = BLOCK

    @property
    def profiles(self) -> tuple[str, ...]:
        """``floor/even``, which is OCP MX v1.0 section 6.3, and ``rceil/even``, which never clips."""
        from mxfp4_core.arithmetic.peers import MXFP8_PROFILES

        return tuple(profile.name for profile in MXFP8_PROFILES)

    def resolve(
        self, profile: str | None = None, *, rule: str | None = None, ties: str | None = None
    ) -> Profile:
        """Return one of the profiles; ``floor/even`` if none is named."""
        from mxfp4_core.arithmetic.peers import MXFP8_PROFILES
        from mxfp4_core.arithmetic.profiles import resolve_among

        return resolve_among(self, MXFP8_PROFILES, profile, rule=rule, ties=ties)

    @cached_property
    def way(self) -> Way:
        """The fast path."""
        from mxfp4_core.arithmetic.fast.mxfp8 import MXFP8_WAY

        return MXFP8_WAY

    def dequantize(self, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Return the values code x 2**(byte - 127): exact in float32, then rounded to ``dtype``."""
        from mxfp4_core.arithmetic.fast.decode import dequantize_e4m3

        found = self.raw(parts)
        return dequantize_e4m3(found["codes"], found["scales"], dtype)


MXFP8 = Mxfp8()

__all__ = ["MXFP8", "Mxfp8"]
