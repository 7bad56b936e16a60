"""Rows of a stack of experts in chunks that end anywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.errors import LoadError, NonFiniteError, ShapeError
from mxfp4_core.loader import LoadSession, QuantTarget, quantize_rows


def made(shape: tuple[int, ...]) -> tuple[LoadSession, QuantTarget]:
    session = LoadSession(Mxfp4Config())
    return session, session.target("w", shape, dtype=torch.float32)


@given(st.sampled_from([(10, 64), (3, 4, 32), (5, 1, 96), (1, 7, 32)]), st.integers(1, 25))
def test_any_chunks_give_the_bytes_of_the_whole(shape: tuple[int, ...], step: int) -> None:
    session, target = made(shape)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(step))
    rows = weight.flatten(0, -2)
    for start in range(0, len(rows), step):
        quantize_rows(target, rows[start : start + step], start)
    session.close()
    expected = quantize(weight)
    assert torch.equal(target.codes, expected.codes) and torch.equal(target.scales, expected.scales)


def test_what_is_missing_or_twice_is_named() -> None:
    session, target = made((3, 4, 32))
    quantize_rows(target, torch.randn(7, 32), 0)
    with pytest.raises(LoadError, match="expert 1, rows 3:4"):
        session.close()
    quantize_rows(target, torch.randn(6, 32), 6)
    with pytest.raises(LoadError, match="expert 1"):
        session.close()


@pytest.mark.parametrize(("rows", "start"), [((5, 32), 8), ((5, 64), 0), ((1, 32), -1)])
def test_rows_that_the_weight_has_not(rows: tuple[int, int], start: int) -> None:
    _, target = made((3, 4, 32))
    with pytest.raises(ShapeError, match="12 rows of 32"):
        quantize_rows(target, torch.randn(rows), start)


def test_nan_leaves_the_rows_uncounted() -> None:
    session, target = made((4, 32))
    with pytest.raises(NonFiniteError):
        quantize_rows(target, torch.full((4, 32), torch.nan), 0)
    with pytest.raises(LoadError):
        session.close()
