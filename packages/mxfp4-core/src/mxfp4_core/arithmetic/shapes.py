"""Sizes: alignment, exact zero padding and cropping.

Zero is exact in MXFP4: zeros appended to K add nothing to a product, rows appended to N are cropped from its result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.errors import ShapeError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Alignment:
    """What a backend needs the sizes of one weight ``[n, k]`` to be multiples of.

    Attributes:
        n: multiple for the output features.
        k: multiple for the input features; itself a multiple of 32.
    """

    n: int = 1
    k: int = BLOCK

    def __post_init__(self) -> None:
        if self.n < 1 or self.k < BLOCK or self.k % BLOCK:
            raise ShapeError(
                "an alignment cannot be used",
                seen=f"n = {self.n}, k = {self.k}",
                rule=f"n is at least 1 and k is a positive multiple of {BLOCK}",
                fix="correct the backend that declares it",
            )

    def physical(self, n: int, k: int) -> tuple[int, int]:
        """Return the padded sizes ``(n, k)``."""
        return padded(n, self.n), padded(k, self.k)

    def fits(self, n: int, k: int) -> bool:
        """Return whether ``[n, k]`` needs no padding."""
        return (n, k) == self.physical(n, k)


def padded(size: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is not below ``size``."""
    return -(-size // multiple) * multiple


def mx_bytes(shape: Sequence[int]) -> int:
    """Return the bytes of codes and scales of a weight ``[..., K]``, with K padded to whole blocks."""
    *rows, k = shape
    return math.prod(rows) * (padded(k, BLOCK) // BLOCK) * (BLOCK // 2 + 1)


def pad_weight(weight: torch.Tensor, alignment: Alignment) -> torch.Tensor:
    """Append zeros so that the last two axes meet the alignment.

    Args:
        weight: ``[..., n, k]`` of any dtype and device.
        alignment: the multiples for n and k.

    Returns:
        ``weight`` itself where nothing is missing, otherwise a new tensor of the same dtype and device.
    """
    n, k = weight.shape[-2:]
    physical_n, physical_k = alignment.physical(n, k)
    if (n, k) == (physical_n, physical_k):
        return weight
    result = weight.new_zeros(*weight.shape[:-2], physical_n, physical_k)
    result[..., :n, :k] = weight
    return result


def crop(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Undo padding: return the leading part of ``tensor`` with ``shape``, as a view.

    Raises:
        ShapeError: the tensor has another number of axes, or is smaller than ``shape``.
    """
    if len(tensor.shape) != len(shape) or any(
        have < want for have, want in zip(tensor.shape, shape, strict=True)
    ):
        raise ShapeError(
            "a padded tensor cannot be cropped",
            seen=f"physical shape {tuple(tensor.shape)}, logical shape {tuple(shape)}",
            rule="padding only adds to the end of an axis",
            fix="pass the logical shape that was recorded when the tensor was padded",
        )
    return tensor[tuple(slice(size) for size in shape)]


__all__ = ["Alignment", "crop", "mx_bytes", "pad_weight", "padded"]
