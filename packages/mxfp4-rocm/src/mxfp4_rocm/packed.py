"""The layouts of weights: as they are, in AITER's order of codes and scales, and a stack of experts in that order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mxfp4_core.arithmetic import BLOCK, E8M0_NAN, Alignment, MxTensor
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_rocm.layout import ROWS, shuffle_weight, swizzle_scales, unshuffle_weight, unswizzle_scales
from mxfp4_rocm.limits import WIDE_MAX

_AT_ONCE: Final = 1 << 22
"""Bytes of codes that are in between where a weight is packed in its own memory."""


def refuse_misaligned(layout: str, weight: MxTensor, n: int, k: int) -> None:
    """Refuse a weight whose sizes the kernels would cut.

    Raises:
        ShapeError: n or k is no multiple of ``n`` or ``k``.
    """
    rows, columns = weight.shape[-2:]
    if rows % n or columns % k:
        raise ShapeError(
            f"packing for {layout}",
            seen=f"n = {rows}, k = {columns}",
            rule=f"n is a multiple of {n}, k of {k}",
            fix="let mxfp4_core.backend.calls.pack pad the weight",
        )


def refuse_bytes(layout: str, scales: Tensor, highest: int) -> None:
    """Refuse scale bytes above the highest that the kernels represent, 255 among them.

    Raises:
        FormatError: there is one.
    """
    largest = int(scales.max()) if scales.numel() else 0
    if largest > highest:
        what = "NaN" if largest == E8M0_NAN else f"2^{largest - 127}"
        raise FormatError(
            f"packing for {layout}",
            seen=f"scale byte {largest}, which is {what}",
            rule=f"scale bytes are at most {highest}: the kernels compute something else with larger ones",
            fix="quantise again with nonfinite='refuse' to find the weight, or keep it in high precision",
        )


@dataclass(frozen=True)
class RawLayout:
    """Codes and scales as they are, for AITER's Triton kernels.

    Attributes:
        n: multiple of n.
        k: multiple of k.
        widened: the kernel widens weights to bfloat16, which ends below the last two scales.
    """

    n: int = 1
    k: int = 256
    widened: bool = False

    @property
    def id(self) -> str:
        """Return the name with the alignment of k, and what the weights become."""
        return f"aiter-raw-{self.k}{'-bf16' if self.widened else ''}"

    @property
    def alignment(self) -> Alignment:
        """Return what the kernels read without a mask."""
        return Alignment(n=self.n, k=self.k)

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``codes`` uint8 [.., n, k/2], ``scales`` uint8 [.., n, k/32] and ``bias``, which are what was given.

        Raises:
            ShapeError: n or k is not aligned.
            FormatError: the kernel widens, and a scale byte is above 252.
        """
        refuse_misaligned(self.id, weight, self.n, self.k)
        if self.widened:
            refuse_bytes(self.id, weight.scales, WIDE_MAX)
        packed = {"codes": weight.codes.contiguous(), "scales": weight.scales.contiguous()}
        return packed if bias is None else packed | {"bias": bias.contiguous()}

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Give back the canonical bytes; see ``Layout.unpack``."""
        return MxTensor(tensors["codes"], tensors["scales"], torch.Size(shape))


@dataclass(frozen=True)
class ShuffledLayout:
    """Codes by ``shuffle_weight (16, 16)`` and swizzled scales, for ``gemm_a4w4`` and the preshuffled Triton GEMM."""

    id: str = "aiter-16x16"

    @property
    def alignment(self) -> Alignment:
        """Return the narrowest tile of the assembly kernels, and the columns that they get right."""
        return Alignment(n=128, k=256)

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``codes`` uint8 [n, k/2], ``scales`` uint8 [n padded to 256, k/32] and ``bias`` [n].

        Raises:
            ShapeError: n or k is not aligned.
        """
        refuse_misaligned(self.id, weight, self.alignment.n, self.alignment.k)
        packed = {"codes": shuffle_weight(weight.codes), "scales": swizzle_scales(weight.scales)}
        return packed if bias is None else packed | {"bias": bias.contiguous()}

    def pack_in_place(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return what ``pack`` does, the codes in the memory of the weight: some rows are in between at a time."""
        refuse_misaligned(self.id, weight, self.alignment.n, self.alignment.k)
        step = max(ROWS, _AT_ONCE // max(1, weight.codes.shape[1]) // ROWS * ROWS)
        for rows in weight.codes.split(step):
            rows.copy_(shuffle_weight(rows))
        packed = {"codes": weight.codes, "scales": swizzle_scales(weight.scales)}
        return packed if bias is None else packed | {"bias": bias.contiguous()}

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Give back the canonical bytes; see ``Layout.unpack``."""
        n, k = shape
        scales = unswizzle_scales(tensors["scales"], n, k).contiguous()
        return MxTensor(unshuffle_weight(tensors["codes"]), scales, torch.Size(shape))


@dataclass(frozen=True)
class ExpertsLayout:
    """A stack of experts as ``fused_moe`` takes it: codes shuffled expert by expert, all scales one swizzled matrix.

    n and k are multiples of 256, so that no tile of scales holds rows of two experts and nothing is padded inside.

    Attributes:
        interleaved: the rows are gate 0, up 0, gate 1, …; ``fused_moe`` wants all gate rows and then all up rows.
    """

    interleaved: bool = False

    @property
    def id(self) -> str:
        """Return the name with the order of the rows that were packed."""
        return f"aiter-16x16-experts{'-deinterleaved' if self.interleaved else ''}"

    @property
    def alignment(self) -> Alignment:
        """Return the sizes that the kernels of the fused MoE get right."""
        return Alignment(n=256, k=256)

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``codes`` uint8 [experts, n, k/2] and ``scales`` uint8 [experts * n, k/32].

        Raises:
            ShapeError: n or k is not aligned.
            FormatError: a bias, which ``fused_moe`` would ignore, or byte 255, with which it computes finite numbers.
        """
        self._check(weight, bias)
        return {
            "codes": shuffle_weight(self._halves(weight.codes)),
            "scales": swizzle_scales(self._halves(weight.scales).reshape(-1, weight.scales.shape[-1])),
        }

    def pack_in_place(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return what ``pack`` does, in the memory of the weight: one expert is in between at a time."""
        self._check(weight, bias)
        codes, scales = (part.view(-1, *part.shape[-2:]) for part in (weight.codes, weight.scales))
        for one, its_scales in zip(codes, scales, strict=True):
            one.copy_(shuffle_weight(self._halves(one)))
            its_scales.copy_(swizzle_scales(self._halves(its_scales)))
        return {"codes": weight.codes, "scales": weight.scales.view(-1, weight.scales.shape[-1])}

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Give back the canonical bytes; see ``Layout.unpack``."""
        *lead, n, k = shape
        codes, scales = unshuffle_weight(tensors["codes"]), tensors["scales"]
        rows = scales.shape[0]
        scales = unswizzle_scales(scales, rows, k).reshape(*lead, n, k // BLOCK)
        return MxTensor(self._woven(codes), self._woven(scales), torch.Size(shape))

    def _check(self, weight: MxTensor, bias: Tensor | None) -> None:
        refuse_misaligned(self.id, weight, self.alignment.n, self.alignment.k)
        if bias is not None:
            raise FormatError(
                f"packing for {self.id}",
                seen=f"a bias of shape {tuple(bias.shape)}",
                rule="fused_moe leaves biases of SiLU experts out without a word",
                fix="ask for the problem with bias=True: other kernels of AITER serve it",
            )
        refuse_bytes(self.id, weight.scales, 254)

    def _halves(self, part: Tensor) -> Tensor:
        return torch.cat((part[..., 0::2, :], part[..., 1::2, :]), -2) if self.interleaved else part

    def _woven(self, part: Tensor) -> Tensor:
        return (
            part.unflatten(-2, (2, -1)).transpose(-3, -2).flatten(-3, -2).contiguous()
            if self.interleaved
            else part.contiguous()
        )


__all__ = ["ExpertsLayout", "RawLayout", "ShuffledLayout"]
