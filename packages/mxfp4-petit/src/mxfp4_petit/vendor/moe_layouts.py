"""The layouts that petit-kernel 0.0.5 has for experts, ``native`` and ``petit``: for tools, the backend uses neither.

They differ from the dense one in the places of codes in a word, too. Which kernels read them, and why the backend
calls none of those, is in decision 0028.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import torch
from torch import Tensor

from mxfp4_core import MxTensor
from mxfp4_core.arithmetic import Alignment
from mxfp4_core.errors import ShapeError
from mxfp4_petit.vendor import codes as nibbles

MOE_OFFSETS: Final = ((7, 1), (15, 9), (23, 17), (31, 25), (24, 28), (16, 20), (8, 12), (0, 4))
"""As ``DENSE_OFFSETS``, for the layout ``petit``."""


class MoeLayout:
    """What ``repack_moe_kernel_layout`` of petit-kernel 0.0.5 writes.

    ``codes`` is uint8 [(experts,) n, k/2], ``scales`` uint8 [(experts,) n, k/32]; the bias is not part of it.

    Args:
        kind: ``native``, whose bytes are AITER's shuffles, or ``petit``, which also spreads the codes of a word.
    """

    alignment: Final = Alignment(n=256, k=256)

    def __init__(self, kind: Literal["native", "petit"]) -> None:
        self.kind = kind

    @property
    def id(self) -> str:
        """Name of the layout and of its variant."""
        return f"petit-kernel-0.0.5-moe-{self.kind}"

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Move codes and scales; see ``Layout.pack``."""
        *lead, n, k = weight.shape
        if n % 256 or k % 256:
            raise ShapeError(
                f"packing for {self.id}",
                seen=f"n = {n}, k = {k}",
                rule="both are multiples of 256",
                fix="pad the weight with zero codes and scale byte 127",
            )
        words = weight.codes.contiguous().view(torch.int32).view(-1, 4, 4, 16, k // 128, 4, 4)
        if self.kind == "petit":
            moved = nibbles.spread(words, MOE_OFFSETS).permute(0, 1, 2, 4, 6, 3, 5)
            places = weight.scales.reshape(-1, 8, 4, k // 256, 8).permute(0, 3, 1, 4, 2)
        else:
            moved = words.permute(0, 1, 2, 4, 5, 3, 6)
            places = weight.scales.reshape(-1, 2, 16, k // 256, 2, 4).permute(0, 3, 5, 2, 4, 1)
        packed = {
            "codes": moved.contiguous().view(torch.uint8).reshape(*lead, n, k // 2),
            "scales": places.reshape(*lead, n, k // 32),
        }
        return packed if bias is None else packed | {"bias": bias}

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Undo ``pack``, in ``petit`` but for minus zeros; see ``Layout.unpack``."""
        *lead, n, k = shape
        words = tensors["codes"].contiguous().view(torch.int32).view(-1, 4, 4, k // 128, 4, 16, 4)
        if self.kind == "petit":
            back = nibbles.gather(words.permute(0, 1, 2, 5, 3, 6, 4), MOE_OFFSETS)
            places = tensors["scales"].reshape(-1, k // 256, 8, 8, 4).permute(0, 2, 4, 1, 3)
        else:
            back = words.permute(0, 1, 2, 5, 3, 4, 6)
            places = tensors["scales"].reshape(-1, k // 256, 4, 16, 2, 2).permute(0, 5, 3, 1, 4, 2)
        codes = back.contiguous().view(torch.uint8).reshape(*lead, n, k // 2)
        return MxTensor(codes, places.reshape(*lead, n, k // 32), torch.Size(shape))


__all__ = ["MOE_OFFSETS", "MoeLayout"]
