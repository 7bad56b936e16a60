"""Pad the parts of a weight to the sizes that a layout takes, and crop them again.

Exact: what is added has each part's own fill, which makes values of zero. Gate rows and up rows of an expert are padded
separately, so that they stay halves. A part of the input has no rows; it is padded along K alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mxfp4_core.arithmetic.formats.base import Part
from mxfp4_core.arithmetic.tensor import MxTensor


def grow(weight: MxTensor, shape: Sequence[int], halves: bool) -> MxTensor:
    """Pad a weight to a physical shape ``[.., n, k]``.

    Args:
        weight: canonical.
        shape: no smaller than the weight, k in whole blocks.
        halves: the rows are gate rows and then up rows.

    Returns:
        A weight whose logical shape is ``shape``; parts that need no padding share memory with those of ``weight``.
    """

    def padded(part: Part, tensor: Tensor) -> Tensor:
        if part.operand == "input":
            return _grow(tensor[None], 1, shape[-1] // part.values, part.fill, False)[0]
        return _grow(tensor, shape[-2], shape[-1] // part.values, part.fill, halves)

    return _each(weight, padded, shape, weight.profile)


def shrink(weight: MxTensor, shape: Sequence[int], halves: bool, profile: str) -> MxTensor:
    """Crop a weight to a logical shape ``[.., n, k]``; the inverse of `grow`.

    Args:
        weight: of a physical shape.
        shape: the logical shape.
        halves: as for `grow`.
        profile: of the result.
    """
    k = weight.format.physical_k(shape[-1])

    def cropped(part: Part, tensor: Tensor) -> Tensor:
        if part.operand == "input":
            return tensor[: k // part.values]
        return _shrink(tensor, shape[-2], k // part.values, halves)

    return _each(weight, cropped, shape, profile)


def grow_bias(bias: Tensor, rows: int, halves: bool) -> Tensor:
    """Pad a bias ``[.., n]`` to ``rows`` with zeros."""
    return _grow(bias[..., None], rows, 1, 0, halves)[..., 0]


def _each(
    weight: MxTensor, change: Callable[[Part, Tensor], Tensor], shape: Sequence[int], profile: str
) -> MxTensor:
    parts = {part.name: change(part, weight.parts[part.name]) for part in weight.format.parts}
    return MxTensor.from_parts(weight.format, parts, torch.Size(shape), profile)


def _grow(tensor: Tensor, rows: int, columns: int, fill: float, halves: bool) -> Tensor:
    if tuple(tensor.shape[-2:]) == (rows, columns):
        return tensor
    if halves:
        both = tensor.unflatten(-2, (2, -1))
        return _grow(both, rows // 2, columns, fill, False).flatten(-3, -2)
    grown = tensor.new_full((*tensor.shape[:-2], rows, columns), fill)
    grown[..., : tensor.shape[-2], : tensor.shape[-1]] = tensor
    return grown


def _shrink(tensor: Tensor, rows: int, columns: int, halves: bool) -> Tensor:
    if tuple(tensor.shape[-2:]) == (rows, columns):
        return tensor
    if halves:
        return tensor.unflatten(-2, (2, -1))[..., : rows // 2, :columns].flatten(-3, -2).contiguous()
    return tensor[..., :rows, :columns].contiguous()


__all__ = ["grow", "grow_bias", "shrink"]
