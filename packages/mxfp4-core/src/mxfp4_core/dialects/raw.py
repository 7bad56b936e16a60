"""What recipes stand on: where bytes are read from, the integers that carry them, and the error of a transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, Protocol

from mxfp4_core.checkpoint.header import DTYPE_BITS
from mxfp4_core.errors import DialectError

if TYPE_CHECKING:
    import torch

PIECE = 4 << 20
"""Bytes that `Recipe.pieces` holds at a time, or one row."""

MOVED = 64 << 20
"""As many where the first axis is not that of the file, so that everything is read for each piece."""

CARRIERS = {8: "uint8", 16: "int16", 32: "int32", 64: "int64"}
"""Bytes travel in integers of the same width: torch moves those in every way, and narrow floats not."""


class Bytes(Protocol):
    """Where stored tensors are read from: a `Checkpoint`, or anything else with this method."""

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill a writable buffer of bytes with the data of a tensor from byte ``start`` on."""
        ...


def joined(tensors: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """Return the tensors one behind the other along an axis."""
    import torch

    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), axis)


def misfit(seen: str, rule: str) -> NoReturn:
    """Raise the error for transforms that do not fit a tensor."""
    raise DialectError(
        "a recipe for a tensor cannot be made",
        seen=seen,
        rule=rule,
        fix="correct the dialect that asked for it, or the tensor in the checkpoint",
    )


def whole_bytes(dtype: str, what: str) -> None:
    """Raise DialectError for a dtype whose elements share bytes: they cannot be moved one by one."""
    if DTYPE_BITS[dtype] < 8:
        misfit(f"dtype {dtype}", f"elements of whole bytes can be {what}; reinterpret it as U8 first")


def nothing(dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """Return a tensor in integers of the width of a dtype, without values."""
    import torch

    return torch.empty(tuple(shape), dtype=getattr(torch, CARRIERS[DTYPE_BITS[dtype]]))


__all__ = ["CARRIERS", "MOVED", "PIECE", "Bytes", "joined", "misfit", "nothing", "whole_bytes"]
