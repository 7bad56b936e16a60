"""Marlin's layouts: what vLLM and SGLang prepare for their W4A16 and W4A8 kernels, byte for byte, and back.

The weight becomes int32 ``[k / 16, 2 n]``: tiles of 16 x 64 codes (32 x 32 for 8-bit activations), inside which codes
follow the fragments of ``mma.sync``; eight codes an int32. Scales become uint8 ``[k / 32, n]``, columns moved inside 64
(or 32); for FP8 activations the exponent is raised by 6, which the kernel takes back. Biases move inside 32.

Source: vLLM 0.33.0, ``marlin_utils.py`` and ``marlin_utils_fp4.py`` (``marlin_permute_scales``,
``prepare_moe_fp4_layer_for_marlin``) and ``gptq_marlin_repack``; SGLang 0.5.23 is equal. Marlin's kernels read scale
byte 0 as zero instead of 2^-127; the layout keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from mxfp4_core.arithmetic import BLOCK, Alignment, MxTensor
from mxfp4_core.errors import FormatError, ShapeError

_RAISED = 6  # FP8 activations: the kernel widens codes to E4M3 without its bias
_N, _K = 64, 64


@cache
def code_order(activation_bits: int) -> tuple[int, ...]:
    """Return, for each of 1024 places in a group of tiles, which code stands there."""
    wide = activation_bits == 8
    rows, step = (4, 512) if wide else (2, 256)
    found: list[int] = []
    for lane in range(32):
        first = [
            16 * row + lane // 4 + 8 * block
            for block in (0, 1)
            for half in (0, 1)
            for row in range(rows * (lane % 4 + 4 * half), rows * (lane % 4 + 4 * half) + rows)
        ]
        found += [place + start for start in range(0, 1024, step) for place in first]
    order = (0, 4, 1, 5, 2, 6, 3, 7) if wide else (0, 2, 4, 6, 1, 3, 5, 7)
    return tuple(found[start + place] for start in range(0, 1024, 8) for place in order)


_BIAS = tuple(2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25))
_SCALE = tuple(i + 8 * j for i in range(8) for j in range(8))
_SCALE_A16 = tuple(_SCALE[start + place] for start in range(0, 64, 4) for place in (0, 2, 1, 3))


def _move(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """Move entries inside groups of ``len(order)`` along the last axis: place i gets entry order[i]."""
    index = torch.tensor(order, device=tensor.device)
    return tensor.unflatten(-1, (-1, len(order)))[..., index].flatten(-2)


def _back(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


@dataclass(frozen=True)
class MarlinLayout:
    """Marlin's layout of one weight.

    Attributes:
        activation_bits: 16 for BF16 activations, 8 for FP8 ones.
    """

    activation_bits: Literal[16, 8] = 16

    @property
    def id(self) -> str:
        """Return ``marlin-a16`` or ``marlin-a8``."""
        return f"marlin-a{self.activation_bits}"

    @property
    def alignment(self) -> Alignment:
        """Return the tile that both variants share."""
        return Alignment(n=_N, k=_K)

    @property
    def _scale_order(self) -> tuple[int, ...]:
        return _BIAS if self.activation_bits == 8 else _SCALE_A16

    @property
    def _tile_rows(self) -> int:
        return 32 if self.activation_bits == 8 else 16

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``qweight`` int32 [..., k/16, 2n], ``scales`` uint8 [..., k/32, n] and ``bias`` [..., n].

        Args:
            weight: canonical [..., n, k], n and k multiples of 64.
            bias: [..., n] or None.

        Raises:
            ShapeError: n or k is not aligned.
            FormatError: for FP8 activations, a scale byte above 249; for both, byte 255.
        """
        *lead, n, k = weight.shape
        if n % _N or k % _K:
            raise ShapeError(
                f"packing for {self.id}",
                seen=f"n = {n}, k = {k}",
                rule=f"n is a multiple of {_N}, k of {_K}",
                fix="pad the weight with zero codes, which is exact",
            )
        highest = 255 - _RAISED if self.activation_bits == 8 else 254
        if weight.scales.numel() and int(weight.scales.max()) > highest:
            raise FormatError(
                f"packing for {self.id}",
                seen=f"scale byte {int(weight.scales.max())}",
                rule=f"scale bytes are at most {highest}"
                + (
                    f": {_RAISED} is added to them"
                    if self.activation_bits == 8
                    else ": Marlin has no NaN scale"
                ),
                fix="use the layout of 16-bit activations, or keep this weight in high precision",
            )
        codes = torch.stack((weight.codes & 15, weight.codes >> 4), -1).flatten(-2).mT
        t = self._tile_rows
        tiles = codes.reshape(*lead, k // t, t, n // 16, 16).transpose(-3, -2).reshape(*lead, -1)
        words = _move(tiles, code_order(self.activation_bits)).unflatten(-1, (-1, 4, 2))
        bytes_ = (words[..., 0] | (words[..., 1] << 4)).contiguous()
        scales = _move(weight.scales.mT, self._scale_order)
        packed = {
            "qweight": bytes_.view(torch.int32).reshape(*lead, k // 16, 2 * n),
            "scales": scales + _RAISED if self.activation_bits == 8 else scales,
        }
        return packed if bias is None else packed | {"bias": _move(bias, _BIAS)}

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Give back the canonical bytes of ``shape`` [..., n, k]; the inverse of ``pack``.

        Raises:
            FormatError: the tensors do not have the shapes that ``pack`` gives for ``shape``.
        """
        *lead, n, k = shape
        want = {"qweight": (*lead, k // 16, 2 * n), "scales": (*lead, k // BLOCK, n)}
        found = {name: tuple(tensors[name].shape) for name in want if name in tensors}
        if found != want:
            raise FormatError(
                f"unpacking {self.id}",
                seen=str(found),
                rule=f"a weight of {tuple(shape)} is stored as {want}",
                fix="give the physical shape of the weight, n and k in this order",
            )
        bytes_ = tensors["qweight"].contiguous().view(torch.uint8).reshape(*lead, -1)
        words = torch.stack((bytes_ & 15, bytes_ >> 4), -1).flatten(-2)
        t = self._tile_rows
        tiles = _move(words, _back(code_order(self.activation_bits))).reshape(*lead, k // t, n // 16, t, 16)
        codes = tiles.transpose(-3, -2).reshape(*lead, k, n).mT.unflatten(-1, (-1, 2))
        scales = _move(tensors["scales"], _back(self._scale_order)).mT.contiguous()
        if self.activation_bits == 8:
            scales = scales - _RAISED
        return MxTensor((codes[..., 0] | (codes[..., 1] << 4)).contiguous(), scales, torch.Size(shape))

    def unpack_bias(self, bias: Tensor) -> Tensor:
        """Give back the bias [..., n] in the order of the rows."""
        return _move(bias, _back(_BIAS))


__all__ = ["MarlinLayout", "code_order"]
