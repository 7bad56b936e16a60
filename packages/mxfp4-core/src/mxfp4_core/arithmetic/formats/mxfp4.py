"""The format ``mxfp4``: E2M1 codes, one E8M0 scale for each 32 of them. OCP MX v1.0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mxfp4_core.arithmetic.format import BLOCK, E8M0_BIAS
from mxfp4_core.arithmetic.formats.base import Format, Part, Parts

if TYPE_CHECKING:
    import torch


class Mxfp4(Format):
    """``codes`` uint8 ``[..., N, K/2]``, even K in the low nibble, and ``scales`` uint8 E8M0 ``[..., N, K/32]``."""

    name = "mxfp4"
    parts = (
        Part("codes", "", "uint8", 1, 2),
        Part("scales", "_scale", "uint8", 1, BLOCK, fill=E8M0_BIAS),
    )
    block = BLOCK

    def quantize_into(
        self,
        weight: torch.Tensor,
        parts: Parts,
        *,
        profile: str,
        nonfinite: Literal["refuse", "nan"] = "refuse",
        name: str = "weight",
        threads: int | None = None,
    ) -> None:
        """Quantise with the fastest path of the core; see `mxfp4_core.quantize_into`."""
        from mxfp4_core.arithmetic.fast.blocks import quantize_into

        quantize_into(
            weight,
            parts["codes"],
            parts["scales"],
            profile=profile,
            nonfinite=nonfinite,
            name=name,
            threads=threads,
        )

    def dequantize(self, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Return the values; see `mxfp4_core.dequantize`."""
        from mxfp4_core.arithmetic.dequantize import dequantize

        return dequantize(parts["codes"], parts["scales"], dtype)


MXFP4 = Mxfp4()

__all__ = ["MXFP4", "Mxfp4"]
