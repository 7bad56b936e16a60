"""The table that `mxfp4 doctor` prints says what runs."""

from __future__ import annotations

import pytest

from mxfp4_core.backend import Choice, Device, Problem
from mxfp4_cuda_marlin import backend
from mxfp4_cuda_marlin.kernels.few import linear_few, moe_few
from mxfp4_cuda_marlin.kernels.tiles import linear_tile, moe_tiles

H200 = Device("cuda", "sm_90")


def row_of(rows: tuple[Choice, ...], m: int) -> Choice:
    (row,) = [row for row in rows if row.first <= m <= row.last]
    return row


@pytest.mark.parametrize("m", [1, 8, 9, 17, 100, 1024, 16384])
def test_rows_are_what_a_call_takes(m: int) -> None:
    linear = Problem(op="linear", n=2000, k=5000, device=H200)
    row = row_of(tuple(backend.choices(linear)), m).settings
    few, tile = linear_few(m, 2048, 5056), linear_tile(m, 2048, 5056)
    want = (few.tokens, few.features, few.warps) if few else (tile.nt, tile.features, tile.split)
    assert (row["tile_tokens"], row["tile_features"], row["splits"]) == want
    moe = Problem(op="moe", n=768, k=2048, experts=128, top_k=8, device=H200)
    fews, wide = moe_few(m, 8, 128, 768, 2048), moe_tiles(m, 8, 128, 768, 2048)
    row = row_of(tuple(backend.choices(moe)), m).settings
    up, down = fews or wide
    assert row == {
        "tile_tokens": fews[0].tokens if fews else wide[0].nt,
        "gate_up_features": up.features,
        "down_features": down.features,
    }


def test_quantize_has_no_table() -> None:
    assert backend.choices(Problem(op="quantize", n=64, k=64, device=H200)) == ()
