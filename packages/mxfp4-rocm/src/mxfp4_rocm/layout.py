"""AITER's layouts in plain index maths, each with its inverse: weights by 16 rows, scales by 32 rows.

    shuffle_weight    [.., n, k/2] codes as ``shuffle_weight(layout=(16, 16))``: [n/16][k/64][2][16 rows][16 bytes]
    swizzle_scales    [n, k/32] scales as ``e8m0_shuffle``: [n/32][k/256][4][16 rows][2][2], padded to 256 rows
                      and 8 columns

Both are what AITER's kernels for gfx950 take: the assembly GEMM, the fused MoE, and the preshuffled Triton GEMM. Its
own function leaves the padding of the scales uninitialised, where a byte 255 would be NaN; here it is 127.

Source: amd-aiter 0.1.7, ``aiter/ops/shuffle.py`` and ``aiter/utility/fp4_utils.py``; its machine code took these bytes
(``tests/test_machine_code.py``).
"""

from __future__ import annotations

from typing import Final

from torch import Tensor
from torch.nn.functional import pad

from mxfp4_core.arithmetic import BLOCK, padded
from mxfp4_core.errors import ShapeError

ROWS: Final = 16
"""Rows of a tile of codes."""

BYTES: Final = 32
"""Bytes of codes of a tile: 64 columns."""

SCALE_ROWS: Final = 256
"""Rows to which swizzled scales are padded."""

SCALE_COLUMNS: Final = 8
"""Columns of scales to which they are padded: 256 columns of the weight."""

FILL: Final = 0x7F
"""The scale byte of padding: 1.0."""


def shuffle_weight(codes: Tensor) -> Tensor:
    """Return the codes in the order of AITER's ``shuffle_weight(layout=(16, 16))``, of the same shape.

    Args:
        codes: uint8 [(experts,) n, k/2], n a multiple of 16, k of 64.

    Raises:
        ShapeError: n or k is not aligned.
    """
    _tiles(codes)
    split = codes.unflatten(-2, (-1, ROWS)).unflatten(
        -1, (-1, 2, BYTES // 2)
    )  # tile, row, column, half, byte
    return split.movedim(-4, -2).reshape(codes.shape)


def unshuffle_weight(codes: Tensor) -> Tensor:
    """Return the codes row by row; the inverse of `shuffle_weight`.

    Raises:
        ShapeError: as `shuffle_weight`.
    """
    _tiles(codes)
    *lead, n, width = codes.shape
    split = codes.reshape(
        *lead, n // ROWS, width // BYTES, 2, ROWS, BYTES // 2
    )  # tile, column, half, row, byte
    return split.movedim(-2, -4).reshape(codes.shape)


def swizzle_scales(scales: Tensor) -> Tensor:
    """Return scales in the order of AITER's ``e8m0_shuffle``, padded with 127.

    Args:
        scales: uint8 [n, k/32]; of experts all rows one after the other.

    Returns:
        uint8 [n padded to 256, k/32 padded to 8].
    """
    n, columns = scales.shape
    grown = pad(scales, (0, -columns % SCALE_COLUMNS, 0, -n % SCALE_ROWS), value=FILL)
    split = grown.view(grown.shape[0] // 32, 2, 16, grown.shape[1] // 8, 2, 4)
    return split.permute(0, 3, 5, 2, 4, 1).reshape(grown.shape)


def unswizzle_scales(scales: Tensor, n: int, k: int) -> Tensor:
    """Return scales [n, k/32] row by row, without padding; the inverse of `swizzle_scales`.

    Args:
        scales: uint8, as `swizzle_scales` returns it.
        n: rows.
        k: columns of the weight.

    Raises:
        ShapeError: that is not the shape of swizzled scales for n and k.
    """
    columns = -(-k // BLOCK)
    want = padded(n, SCALE_ROWS), padded(columns, SCALE_COLUMNS)
    if tuple(scales.shape) != want:
        raise ShapeError(
            "swizzled scales",
            seen=str(tuple(scales.shape)),
            rule=f"scales of {n} rows and {k} columns are padded to {want}",
            fix="give the physical shape of the weight, n and k in this order",
        )
    split = scales.reshape(want[0] // 32, want[1] // 8, 4, 16, 2, 2)
    return split.permute(0, 5, 3, 1, 4, 2).reshape(want)[:n, :columns]


def _tiles(codes: Tensor) -> None:
    n, width = codes.shape[-2:]
    if n % ROWS or width % BYTES:
        raise ShapeError(
            "AITER's order of codes",
            seen=f"n = {n}, k = {2 * width}",
            rule=f"n is a multiple of {ROWS}, k of {2 * BYTES}",
            fix="pad the weight with zero codes, which is exact",
        )


__all__ = [
    "BYTES",
    "FILL",
    "ROWS",
    "SCALE_COLUMNS",
    "SCALE_ROWS",
    "shuffle_weight",
    "swizzle_scales",
    "unshuffle_weight",
    "unswizzle_scales",
]
