"""NVFP4 weights: E2M1 codes, an E4M3 scale for each 16 of them, and an F32 number for the whole weight.

ModelOpt stores codes as ``X.weight``, scales as ``X.weight_scale`` and the number, which multiplies, as
``X.weight_scale_2``; compressed-tensors ``X.weight_packed``, ``X.weight_scale`` and ``X.weight_global_scale``, which
divides. Sources: ModelOpt 0.47, ``qtensor/nvfp4_tensor.py``; compressed-tensors 0.20, ``compressors/nvfp4``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mxfp4_core.arithmetic.format import BLOCK, E8M0_BIAS
from mxfp4_core.dialects.beside import Narrow
from mxfp4_core.dialects.pairs import contradiction
from mxfp4_core.dialects.raw import Bytes
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source

if TYPE_CHECKING:
    import torch

NVFP4: Final = "NVFP4"
GROUP: Final = 16
"""Values that share a scale."""

_NAMES: Final = (
    (".weight", ".weight_scale", ".weight_scale_2", False),
    (".weight_packed", ".weight_scale", ".weight_global_scale", True),
)


@dataclass(frozen=True)
class Nvfp4(Narrow):
    """One weight in NVFP4.

    Args:
        weight: canonical name.
        codes: U8 ``[..., N, K/2]``.
        scales: F8_E4M3 ``[..., N, K/16]``.
        outer: F32, one number.
        divides: whether that number divides, as compressed-tensors has it.
    """

    codes: Recipe
    scales: Recipe
    outer: Recipe
    divides: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Two values for each byte of codes."""
        return (*self.codes.shape[:-1], self.codes.shape[-1] * 2)

    @property
    def stored(self) -> tuple[Recipe, ...]:
        """Its three tensors."""
        return self.codes, self.scales, self.outer

    @property
    def told(self) -> str:
        """NVFP4."""
        return NVFP4

    def numbers(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Multiply codes, scales and the number of the weight."""
        import torch

        from mxfp4_core.arithmetic.fast.decode import dequantize

        codes = self.codes.load(source, start, stop)
        k = self.shape[-1]
        short = -k % BLOCK  # K is whole groups of 16, and need not be whole blocks
        codes = torch.nn.functional.pad(codes, (0, short // 2))
        ones = torch.full((*codes.shape[:-1], (k + short) // BLOCK), E8M0_BIAS, dtype=torch.uint8)
        values = dequantize(codes, ones, torch.float32)[..., :k].double()
        scales = self.scales.load(source, start, stop).double().repeat_interleave(GROUP, -1)
        outer = self.outer.load(source).double().reshape(())
        return values * scales / outer if self.divides else values * scales * outer


def nvfp4_weights(dialect: str, source: Source) -> dict[str, Nvfp4]:
    """Return the weights in NVFP4, by canonical name.

    Args:
        dialect: name for messages.
        source: the checkpoint.

    Raises:
        DialectError: a part is missing, or has another dtype or shape.
    """
    found: dict[str, Nvfp4] = {}
    for codes_end, scales_end, outer_end, divides in _NAMES:
        for outer in source.tensors:
            if not outer.endswith(outer_end):
                continue
            module = outer.removesuffix(outer_end)
            names = f"{module}{codes_end}", f"{module}{scales_end}", outer
            if missing := [name for name in names if name not in source.tensors]:
                contradiction(
                    dialect, f"{outer!r} without {missing[0]!r}", "an NVFP4 weight has three tensors"
                )
            codes, scales, number = map(source.tensor, names)
            codes = codes.reinterpret("U8") if codes.dtype in ("I8", "F4") else codes
            grid = (*codes.shape[:-1], codes.shape[-1] * 2 // GROUP) if codes.shape else ()
            fits = (codes.dtype, scales.dtype, number.dtype) == ("U8", "F8_E4M3", "F32")
            if not fits or len(grid) < 2 or codes.shape[-1] % 8 or scales.shape != grid or number.nbytes != 4:
                seen = ", ".join(f"{name!r} {' '.join(map(str, source.tensors[name]))}" for name in names)
                contradiction(dialect, seen, "codes U8 [N, K/2], scales F8_E4M3 [N, K/16], one F32 number")
            weight = f"{module}.weight"
            found[weight] = Nvfp4(weight, codes, scales, number, divides)
    return found


__all__ = ["GROUP", "NVFP4", "Nvfp4", "nvfp4_weights"]
