"""The tables that the fast paths read against the profiles that they are derived from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mxfp4_core.arithmetic.fast.steps import EXPONENT_MIN, SPECIAL, steps
from mxfp4_core.arithmetic.profiles import profiles, resolve

NAMES = [*profiles(), "even/even", "ceil_d(7.25)/away"]


def check(name: str, maxima: torch.Tensor) -> None:
    profile, table = resolve(name), steps(resolve(name), maxima.dtype)
    byte, exponent = profile.scale(maxima.double(), maxima.dtype)
    bits = maxima.float().view(torch.int32)
    row = (bits >> 23).long()
    side = ((bits & 0x7FFFFF) >= table.mantissa[row]).long()
    used = table.exponent[side, row] != SPECIAL
    assert torch.equal(table.byte[side, row].int()[used], byte[used])
    assert torch.equal(table.exponent[side, row][used], exponent[used])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_maximum_of_the_short_dtypes(name: str, dtype: torch.dtype) -> None:
    values = torch.arange(1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    check(name, values[torch.isfinite(values) & (values > 0)])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None)
@given(bits=st.lists(st.integers(1, 0x7F7FFFFF), min_size=64, max_size=64))
def test_any_float32_maximum(name: str, bits: list[int]) -> None:
    check(name, torch.tensor(bits, dtype=torch.int32).view(torch.float32))


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_maxima_need_no_reference(name: str) -> None:
    """The tables must carry the work: every maximum from 2**-100 to 2**100 is theirs."""
    for dtype in (torch.bfloat16, torch.float32):
        table = steps(resolve(name), dtype)
        assert (table.exponent[:, 27:228] != SPECIAL).all()
        assert (table.exponent[table.exponent != SPECIAL] >= EXPONENT_MIN).all()
