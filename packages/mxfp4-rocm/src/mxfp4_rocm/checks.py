"""What the operators refuse before a kernel sees it: AITER's kernels check little, and read where they are told.

Values are not looked at, since that would wait for the device: ids that are no expert are empty slots, every byte is
a code or a scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_core.arithmetic import BLOCK, padded
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_rocm.layout import SCALE_COLUMNS, SCALE_ROWS

SWIZZLED = frozenset({"asm", "fused"})
"""Ways whose scales are one swizzled matrix."""


def check_rows(op: str, x: Tensor) -> None:
    """Refuse what are no rows of tokens.

    Raises:
        FormatError: not bfloat16, or with gaps.
        ShapeError: not [m, k].
    """
    if x.dtype != torch.bfloat16 or not x.is_contiguous():
        raise FormatError(
            f"mxfp4_rocm::{op}, x",
            seen=f"{x.dtype}, {'contiguous' if x.is_contiguous() else 'with gaps'}",
            rule="x is bfloat16 and contiguous",
            fix="call the backend through mxfp4_core.backend.calls, which sees to it",
        )
    if x.dim() != 2:
        raise ShapeError(
            f"mxfp4_rocm::{op}, x",
            seen=str(tuple(x.shape)),
            rule="x is [m, k]",
            fix="flatten the leading axes",
        )


def check_weight(op: str, codes: Tensor, scales: Tensor, x: Tensor, way: str, k: int, experts: bool) -> None:
    """Refuse a weight that is not in the layout of its kernels, or does not belong to these tokens.

    Args:
        op: for the message.
        codes: uint8 [(experts,) n, k/2].
        scales: uint8 [(experts,) n, k/32], or swizzled.
        x: the tokens.
        way: whose layout it is.
        k: columns that the weight must have.
        experts: whether it is a stack.

    Raises:
        FormatError: other dtypes or devices, or gaps.
        ShapeError: sizes that do not belong together.
    """
    parts = (codes, scales)
    if any(p.dtype != torch.uint8 or p.device != x.device or not p.is_contiguous() for p in parts):
        raise FormatError(
            f"mxfp4_rocm::{op}, a weight",
            seen=", ".join(f"{p.dtype} on {p.device}" for p in parts),
            rule=f"codes and scales are contiguous bytes on {x.device}",
            fix="pass what the layout packed, on the device of x",
        )
    *lead, n, half = codes.shape if codes.dim() == 2 + experts else (0, 0, 0)
    want: tuple[int, ...] = (*lead, n, 2 * half // BLOCK)
    if way in SWIZZLED:
        rows = n * (lead[0] if lead else 1)
        want = (padded(rows, SCALE_ROWS), padded(2 * half // BLOCK, SCALE_COLUMNS))
    if 2 * half != k or tuple(scales.shape) != want:
        raise ShapeError(
            f"mxfp4_rocm::{op}, a weight for {way}",
            seen=f"codes {tuple(codes.shape)}, scales {tuple(scales.shape)}, x {tuple(x.shape)}",
            rule=f"codes [{'experts, ' if experts else ''}n, {k // 2}], and scales as the layout of {way} makes them",
            fix="pass the weight of this layer, packed by the backend's layout",
        )


__all__ = ["check_rows", "check_weight"]
