"""The table that `mxfp4 doctor` prints says what runs."""

from __future__ import annotations

import pytest

from mxfp4_core.backend import Choice, Problem
from mxfp4_core.device import Device
from mxfp4_cuda_marlin import backend
from mxfp4_cuda_marlin.kernels.tiles import linear_tile, moe_tile, splits

H200 = Device("cuda", "sm_90")


def row_of(rows: tuple[Choice, ...], m: int) -> Choice:
    (row,) = [row for row in rows if row.first <= m and (row.last is None or m <= row.last)]
    return row


@pytest.mark.parametrize("m", [1, 8, 9, 17, 100, 1024, 16384])
def test_rows_are_what_a_call_takes(m: int) -> None:
    linear = Problem(op="linear", n=2000, k=5000, device=H200)
    row = row_of(tuple(backend.choices(linear)), m).settings
    tile = linear_tile(m)
    assert (row["tile_tokens"], row["stages"]) == (tile.nt, tile.stages)
    assert row["splits"] == splits(m, 2048, 5056, tile)
    moe = Problem(op="moe", n=768, k=2048, experts=128, top_k=8, device=H200)
    assert row_of(tuple(backend.choices(moe)), m).settings["tile_tokens"] == moe_tile(m * 8, 128).nt


def test_quantize_has_no_table() -> None:
    assert backend.choices(Problem(op="quantize", n=64, k=64, device=H200)) == ()
