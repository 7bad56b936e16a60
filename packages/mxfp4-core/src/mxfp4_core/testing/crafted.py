"""Weights whose products are exact, so that a result shows one step of a layer and no rounding beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mxfp4_core.arithmetic import BLOCK, MxTensor

ONE = 2
"""Code of 1.0."""

ORDINARY_SCALE = 127
"""Scale byte of 1.0."""


def one_hot(columns: Sequence[int], k: int, experts: int = 0, scale: int = ORDINARY_SCALE) -> MxTensor:
    """Return a weight that copies chosen inputs.

    Args:
        columns: for each row the column that holds the code of 1.0; the others hold 0.
        k: columns.
        experts: length of a leading axis with the same matrix for each expert; 0 for no such axis.
        scale: scale byte of the blocks that hold a code of 1.0; the others have the byte of 1.0.

    Returns:
        Canonical [(experts,) rows, k].
    """
    rows = len(columns)
    codes = torch.zeros(rows, k // 2, dtype=torch.uint8)
    scales = torch.full((rows, k // BLOCK), ORDINARY_SCALE, dtype=torch.uint8)
    for row, column in enumerate(columns):
        codes[row, column // 2] = ONE << 4 * (column % 2)
        scales[row, column // BLOCK] = scale
    if experts:
        codes, scales = codes.repeat(experts, 1, 1), scales.repeat(experts, 1, 1)
    lead = (experts,) if experts else ()
    return MxTensor(codes, scales, torch.Size((*lead, rows, k)))


def gate_up_columns(gate: Sequence[int], up: Sequence[int], interleaved: bool) -> list[int]:
    """Order the columns of gate rows and of up rows as the gate-up weight wants them."""
    if interleaved:
        return [column for pair in zip(gate, up, strict=True) for column in pair]
    return [*gate, *up]


def close(got: Tensor, want: Tensor, what: str, beside: Tensor | float = 0.0) -> None:
    """Compare where nothing but the gate and roundings to bfloat16 can differ: two of them, and half a unit to spare.

    Args:
        got: result of the backend.
        want: float64.
        what: named in the message.
        beside: what the arithmetic between may be off, absolutely.

    Raises:
        AssertionError: an element is further away than 2^-7 of its size, or is NaN where the truth is not.
    """
    found = got.to("cpu", torch.float64)
    bad = ~((found - want).abs() <= 2.0**-7 * want.abs() + beside) & ~(found.isnan() & want.isnan())
    if bool(bad.any()):
        place = tuple(int(index) for index in bad.nonzero()[0])
        raise AssertionError(f"{what}: {float(found[place])} instead of {float(want[place])} at {place}")
