"""The blocks of GGUF: MXFP4 in 17 bytes, one of scale and 16 of codes, and Q8_0 in 34; and floats that become F32.

Byte j of the codes holds element j in its low and element j + 16 in its high half; ours hold neighbours. The values of
the codes are the same. Source: ggml, ``ggml-quants.c`` and ``ggml-common.h``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.checkpoint.gguf import BLOCK_BYTES
from mxfp4_core.dialects.beside import Narrow
from mxfp4_core.dialects.joins import concat
from mxfp4_core.dialects.raw import Bytes
from mxfp4_core.dialects.recipes import Recipe

if TYPE_CHECKING:
    import torch

_HALF = BLOCK // 2


@dataclass(frozen=True)
class _Nibbles(Recipe):
    of: Recipe
    apart: bool

    @property
    def children(self) -> tuple[Recipe, ...]:
        """The codes in the other order."""
        return (self.of,)

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Put neighbours together, or those that are 16 apart."""
        import torch

        stored = self.of.rows(source, start, stop)
        low, high = stored & 0x0F, stored >> 4
        if self.apart:  # 0 2 4 ... in the low halves, 1 3 5 ... in the high ones
            values = torch.stack([low, high], -1).flatten(-2)
            return values[..., :_HALF] | values[..., _HALF:] << 4
        values = torch.cat([low, high], -1)
        return values[..., ::2] | values[..., 1::2] << 4


@dataclass(frozen=True)
class Float32(Recipe):
    """Floats of 16 bits as F32, which has all of them.

    Args:
        of: BF16 or F16.
    """

    of: Recipe

    @property
    def children(self) -> tuple[Recipe, ...]:
        """The floats."""
        return (self.of,)

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Widen them."""
        import torch

        dtype = torch.bfloat16 if self.of.dtype == "BF16" else torch.float16
        return self.of.rows(source, start, stop).contiguous().view(dtype).float().view(torch.int32)


@dataclass(frozen=True)
class Q80(Narrow):
    """One weight in Q8_0: an F16 scale and 32 integers of 8 bits in each block.

    Args:
        weight: canonical name.
        blocks: U8 ``[..., K/32, 34]``.
    """

    blocks: Recipe

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape, K last."""
        *lead, count, _ = self.blocks.shape
        return (*lead, count * BLOCK)

    @property
    def stored(self) -> tuple[Recipe, ...]:
        """The blocks."""
        return (self.blocks,)

    @property
    def told(self) -> str:
        """Its type in GGUF."""
        return "Q8_0"

    def numbers(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Multiply scales and integers."""
        import torch

        raw = self.blocks.load(source, start, stop)
        scales = raw[..., :2].contiguous().view(torch.float16).double()
        values = raw[..., 2:].contiguous().view(torch.int8).double() * scales
        return values.flatten(-2)


def parts_of(blocks: Recipe) -> dict[str, Recipe]:
    """Return codes ``[..., K/2]`` and scales ``[..., K/32]`` of blocks ``[..., K/32, 17]``."""
    *lead, count, _ = blocks.shape
    last = len(lead) + 1
    codes = blocks.take(1, BLOCK_BYTES, axis=last)
    together = _Nibbles("U8", codes.shape, codes, False)
    scales = blocks.take(0, 1, axis=last).reshape(*lead, count)
    return {"codes": together.reshape(*lead, count * _HALF), "scales": scales}


def blocks_of(codes: Recipe, scales: Recipe) -> Recipe:
    """Return blocks ``[..., K/32, 17]`` of codes ``[..., K/2]`` and scales ``[..., K/32]``."""
    lead = scales.shape
    paired = codes.reshape(*lead, _HALF)
    return concat([scales.reshape(*lead, 1), _Nibbles("U8", paired.shape, paired, True)], len(lead))


def as_float32(recipe: Recipe) -> Recipe:
    """Return floats of 16 bits as F32, and anything else as it is."""
    return Float32("F32", recipe.shape, recipe) if recipe.dtype in ("BF16", "F16") else recipe


__all__ = ["Q80", "Float32", "as_float32", "blocks_of", "parts_of"]
