"""The format ``mxfp4``: E2M1 codes, one E8M0 scale for each 32 of them. OCP MX v1.0."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from typing import TYPE_CHECKING

from mxfp4_core.arithmetic.format import BLOCK, E8M0_BIAS
from mxfp4_core.arithmetic.formats.base import Part, Parts
from mxfp4_core.arithmetic.formats.core import CoreFormat

if TYPE_CHECKING:
    import torch

    from mxfp4_core.arithmetic.fast.blocks import Way
    from mxfp4_core.arithmetic.profile import Profile

CODES = Part("codes", "", "uint8", 1, 2, same=("float4_e2m1fn_x2",))
SCALES = Part("scales", "_scale", "uint8", 1, BLOCK, fill=E8M0_BIAS, same=("float8_e8m0fnu",))


class Mxfp4(CoreFormat):
    """``codes`` uint8 ``[..., N, K/2]``, even K in the low nibble, and ``scales`` uint8 E8M0 ``[..., N, K/32]``."""

    name = "mxfp4"
    parts = (CODES, SCALES)
    block = BLOCK

    @property
    def profiles(self) -> tuple[str, ...]:
        """Every pair and every named profile of ``mxfp4_core.profiles()``; `resolve` takes other ``ceil_d(D)``, too."""
        from mxfp4_core.arithmetic.profiles import pairs, profiles

        return (*pairs(), *profiles())

    def resolve(
        self, profile: str | None = None, *, rule: str | None = None, ties: str | None = None
    ) -> Profile:
        """Return any profile; ``even/even`` if none is named."""
        return _resolver()(profile, rule=rule, ties=ties)

    @cached_property
    def way(self) -> Way:
        """The fast path."""
        from mxfp4_core.arithmetic.fast.single import SINGLE

        return SINGLE

    def dequantize(self, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Return the values; see `mxfp4_core.dequantize`."""
        from mxfp4_core.arithmetic.fast.decode import dequantize

        found = self.raw(parts)
        return dequantize(found["codes"], found["scales"], dtype)


@cache
def _resolver() -> Callable[..., Profile]:
    from mxfp4_core.arithmetic.profiles import resolve

    return resolve


MXFP4 = Mxfp4()

__all__ = ["CODES", "MXFP4", "SCALES", "Mxfp4"]
