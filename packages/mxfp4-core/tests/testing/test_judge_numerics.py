"""What a backend states of its arithmetic reaches the judge: what is stated passes, what is not does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mxfp4_core.arithmetic import MxTensor, get_format
from mxfp4_core.backend.answers import Numerics
from mxfp4_core.backend.problem import Gate
from mxfp4_core.testing import judge
from mxfp4_core.testing.crafted import one_hot
from mxfp4_core.testing.samples import random_weight, random_x

ZERO, INFINITE = Numerics(scale_byte_0="zero"), Numerics(scale_byte_255="inf")


def _weight(name: str, n: int = 6, k: int = 72) -> MxTensor:
    """Return a weight of 1.0, in a row whose tail is padded, with a block of byte 0 in row 2."""
    format = get_format(name)
    made = {
        part.name: torch.full(part.shape((n, k), format.physical_k(k)), part.fill, dtype=part.torch_dtype)
        for part in format.parts
    }
    made["codes"].view(torch.uint8).fill_(0x38 if name == "mxfp8" else 0x22)
    made["scales"][2, 1] = 0
    if "level0" in made:
        made["level0"].fill_(1.0)
    return MxTensor.from_parts(format, made, (n, k))


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "mxfp4-dual", "mxfp4+input_scale"])
def test_a_block_of_byte_0_is_zero_where_it_is_stated(name: str) -> None:
    weight = _weight(name)
    x = torch.zeros(3, 72, dtype=torch.bfloat16)
    x[:, 32:64] = 2.0**127
    read = torch.full((3, 6), torch.inf, dtype=torch.bfloat16)
    said = read.clone()
    read[:, 2], said[:, 2] = 0.0, 32.0
    judge.linear(x, weight, None, ZERO, "none").check(read)
    judge.linear(x, weight, None, Numerics(), "none").check(said)
    for numerics, wrong in ((ZERO, said), (Numerics(), read)):
        with pytest.raises(AssertionError, match=r"beyond the bound, first at \(0, 2\)"):
            judge.linear(x, weight, None, numerics, "none").check(wrong)


@pytest.mark.parametrize("place", ["gate_up", "down"])
def test_a_block_of_byte_0_is_zero_in_the_expert_that_has_it(place: str) -> None:
    up, down = (one_hot(range(32), 32, experts=2) for _ in range(2))
    up.scales.fill_(100)
    (up if place == "gate_up" else down).scales[1, 4] = 0
    x = torch.full((2, 32), 2.0**127, dtype=torch.bfloat16)
    ids, form = torch.tensor([[0], [1]]), Gate(function="relu", gated=False)
    read, said = (
        judge.moe(x, up, down, (None, None), ids, torch.ones(2, 1), form, numerics)
        for numerics in (ZERO, Numerics())
    )
    want = torch.full((2, 32), 2.0**100, dtype=torch.bfloat16)
    want[1, 4] = 1.0 if place == "gate_up" else 2.0**-27
    said.check(want)
    _judged(read, want, False)
    want[1, 4] = 0.0
    read.check(want)
    _judged(said, want, False)


def test_a_block_of_byte_255_is_not_finite_where_it_is_stated_infinite() -> None:
    weight, x = _weight("mxfp4"), random_x(3, 72).abs()
    weight.scales[4, 0] = 255
    x[2, 5] = torch.nan
    exact = judge.linear(x, weight, None, Numerics()).value.bfloat16()
    assert bool(exact[:, 4].isnan().all())
    for row, value, right in (
        (0, torch.inf, True),
        (1, -torch.inf, True),
        (0, torch.nan, True),
        (0, 1.0, False),
        (2, torch.inf, False),  # NaN times infinity is NaN
    ):
        got = exact.clone()
        got[row, 4] = value
        _judged(judge.linear(x, weight, None, INFINITE), got, right)
        _judged(judge.linear(x, weight, None, Numerics()), got, bool(got[row, 4].isnan()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_in_the_dtype_that_is_stated(dtype: torch.dtype) -> None:
    weight, x = random_weight(16, 256, scales=(124, 124)), random_x(8, 256, torch.float16).abs()
    weight.codes.bitwise_and_(0x77)  # nothing cancels, so that a relative error shows
    wide = weight.dequantize(torch.float32)
    sums = torch.zeros(8, 16, dtype=dtype)
    for column in range(256):
        sums += (x[:, column, None].float() * wide[None, :, column]).to(dtype)
    got = sums.to(torch.float16)
    judge.linear(x, weight, None, Numerics(accumulate=str(dtype)[6:])).check(got)
    _judged(judge.linear(x, weight, None, Numerics()), got, False)


def test_sums_beyond_the_dtype_that_is_stated() -> None:
    weight, x = random_weight(1, 32, scales=(127, 127)), torch.full((1, 32), 4000.0).float()
    weight.codes[:] = 0x22
    got = torch.tensor([[torch.inf]])
    judge.linear(x, weight, None, Numerics(accumulate="float16")).check(got)
    _judged(judge.linear(x, weight, None, Numerics()), got, False)
    judge.linear(x, weight, None, Numerics(accumulate="float64")).check(torch.tensor([[128000.0]]))


def _judged(answer: judge.Answer, got: Tensor, right: bool) -> None:
    if right:
        answer.check(got)
        return
    with pytest.raises(AssertionError, match="beyond the bound"):
        answer.check(got)
