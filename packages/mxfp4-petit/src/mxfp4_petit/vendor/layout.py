"""The layout of petit-kernel's dense kernels, as its version 0.0.3 introduced it and 0.0.5 still reads it.

A tile has 32 rows and 64 columns, and holds four words of eight codes for each of 64 lanes. Lane l reads rows
r = l % 16 and r + 16, of each the words w = 2 (l // 16) and w + 1: (r, w), (r, w + 1), (r + 16, w), (r + 16, w + 1).
Tiles lie one below the other in a strip of 64 columns. Inside a word the codes are spread so that a shift and a mask
make two FP8 numbers of them; those of the upper half have their magnitude reversed. Scale bytes only change places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from mxfp4_core import MxTensor
from mxfp4_core.arithmetic import Alignment
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_petit.vendor import codes as nibbles
from mxfp4_petit.vendor.limits import HIGHEST, LAYOUT, LOWEST

DENSE_OFFSETS: Final = (
    (15, 9), (31, 25), (7, 1), (23, 17), (16, 20), (0, 4), (24, 28), (8, 12),
)  # fmt: skip
"""For each code of a word, where its sign and the lowest bit of its magnitude go."""


class PetitLayout:
    """What ``repack_mxfp4`` and ``process_mxfp4_scales`` of petit-kernel write.

    ``codes`` is int32 [n/16, 2k], ``scales`` uint8 [n/32, k], ``global_scale`` float32 [1], which is 1. Minus zero
    becomes zero, since a sign bit on a zero is NaN to the kernels.
    """

    id: Final = LAYOUT
    alignment: Final = Alignment(n=32, k=256)

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Refuse what the kernels get wrong, and move the rest; see ``Layout.pack``."""
        n, k = self._checked(weight)
        words = nibbles.spread(weight.codes.contiguous().view(torch.int32), DENSE_OFFSETS)
        lanes = words.view(n // 32, 2, 16, k // 64, 4, 2).permute(3, 0, 4, 2, 1, 5)
        places = weight.scales.contiguous().view(n // 32, 2, 8, 2, k // 64, 2).permute(4, 0, 5, 2, 3, 1)
        packed = {
            "codes": lanes.reshape(n // 16, 2 * k),
            "scales": places.reshape(n // 32, k),
            "global_scale": torch.ones(1, dtype=torch.float32, device=words.device),
        }
        return packed if bias is None else packed | {"bias": bias}

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Undo ``pack``, but for minus zeros; see ``Layout.unpack``."""
        n, k = shape
        lanes = tensors["codes"].view(k // 64, n // 32, 4, 16, 2, 2).permute(1, 4, 3, 0, 2, 5)
        words = nibbles.gather(lanes.reshape(n, k // 8), DENSE_OFFSETS)
        places = tensors["scales"].view(k // 64, n // 32, 2, 8, 2, 2).permute(1, 5, 3, 4, 0, 2)
        return MxTensor(words.view(torch.uint8), places.reshape(n, k // 32), torch.Size(shape))

    def _checked(self, weight: MxTensor) -> tuple[int, int]:
        shape = tuple(weight.shape)
        if len(shape) != 2 or shape[0] % 32 or shape[1] % 256:
            raise ShapeError(
                f"packing for {self.id}",
                seen=f"a weight of {shape}",
                rule="[n, k] with n a multiple of 32 and k of 256; of other sizes the kernels leave a tail unwritten",
                fix="let mxfp4_core.backend.calls.pack pad the weight",
            )
        # A block of zeros is zero times whatever finite number its scale becomes.
        blocks = weight.codes.view(*weight.scales.shape, 16)
        zeros = ((blocks & 0x77) == 0).all(-1)
        wrong = (weight.scales > HIGHEST) | ((weight.scales < LOWEST) & ~zeros)
        if bool(wrong.any()):
            row, block = (int(index) for index in wrong.nonzero()[0])
            raise FormatError(
                f"packing for {self.id}",
                seen=f"scale byte {int(weight.scales[row, block])} in row {row}, block {block}, and "
                f"{int(wrong.sum()) - 1} more",
                rule=f"petit-kernel computes with scale bytes {LOWEST} to {HIGHEST} in each of its modes, and with "
                "smaller ones where all codes of the block are zero",
                fix='use our own kernels: backend_options = {"petit": {"provider": "triton"}}',
            )
        return shape[0], shape[1]


__all__ = ["DENSE_OFFSETS", "PetitLayout"]
