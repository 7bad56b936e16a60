from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mxfp4_core.arithmetic import apply_gate
from mxfp4_core.arithmetic.format import E2M1_VALUES
from mxfp4_core.backend.answers import Numerics
from mxfp4_core.backend.problem import Gate
from mxfp4_core.testing import judge
from mxfp4_core.testing.judge import Answer
from mxfp4_core.testing.samples import random_routes, random_weight, random_x
from mxfp4_core.testing.suite_gates import GATES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("exponent", [-40, -7, 0, 9])
def test_products_are_exact_in_float32(dtype: torch.dtype, exponent: int) -> None:
    """Every finite activation of 16 bits times every code, where neither end of float32 is near."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = x[x.isfinite() & ((x == 0) | (x.double().abs() > 2.0**-60)) & (x.double().abs() < 2.0**60)]
    weights = torch.tensor(E2M1_VALUES, dtype=torch.float64) * 2.0**exponent
    exact = x.double()[:, None] * weights
    assert torch.equal((x.float()[:, None] * weights.float()).double(), exact)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 40), st.integers(1, 300), st.sampled_from([torch.bfloat16, torch.float16, torch.float32])
)
def test_float32_in_any_order_is_within_the_bound(n: int, k: int, dtype: torch.dtype) -> None:
    weight, x, bias = random_weight(n, k, seed=n), random_x(5, k, dtype, seed=k), torch.randn(n)
    order = torch.randperm(k)
    wide = weight.dequantize(torch.float32)
    answer = judge.linear(x, weight, bias, Numerics())
    answer.check((x.float()[:, order] @ wide[:, order].T + bias).to(dtype))
    backwards = torch.zeros(5, n)
    for column in order.tolist():
        backwards += x.float()[:, column, None] * wide[None, :, column]
    answer.check((backwards + bias).to(dtype))


def test_the_bound_is_tight_enough_to_see_one_wrong_code() -> None:
    weight, x = random_weight(16, 2880, scales=(127, 127)), random_x(8, 2880)
    answer = judge.linear(x, weight, None, Numerics())
    weight.codes[3, 700] ^= 0x02
    with pytest.raises(AssertionError, match="beyond the bound"):
        judge.linear(x, weight, None, Numerics())
        answer.check((x.float() @ weight.dequantize(torch.float32).T).bfloat16())


def test_a_stated_error_of_products_is_allowed_and_an_unstated_one_is_not() -> None:
    weight, x = random_weight(16, 96, scales=(127, 127)), random_x(8, 96, torch.float32).abs()
    weight.codes.bitwise_and_(0x77)  # nothing cancels, so that a relative error shows
    got = x @ (weight.dequantize(torch.float32) * (1 + 2.0**-9)).T
    judge.linear(x, weight, None, Numerics(product_error=2.0**-8)).check(got)
    with pytest.raises(AssertionError):
        judge.linear(x, weight, None, Numerics()).check(got)


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
@pytest.mark.parametrize("rounded", [False, True])
def test_experts_in_bfloat16_are_within_the_bound(gate: Gate, rounded: bool) -> None:
    """Kernels may keep the intermediate in float32 or round it, also each expert's result."""
    gate_up, down = (
        random_weight(4, 96 * gate.rows, 160, scales=(117, 122)),
        random_weight(4, 160, 96, scales=(117, 122)),
    )
    x, (ids, weights) = random_x(9, 160), random_routes(9, 4, 2)
    form = replace(gate, interleaved=False)
    answer = judge.moe(x, gate_up, down, (None, None), ids, weights, form, Numerics())

    def step(value: torch.Tensor) -> torch.Tensor:
        return value.bfloat16().float() if rounded else value

    out = torch.zeros(9, 160)
    for token in range(9):
        for slot in range(2):
            expert = int(ids[token, slot])
            both = step(gate_up.dequantize(torch.float32)[expert] @ x[token].float())
            hidden = step(apply_gate(both, form))
            result = step(down.dequantize(torch.float32)[expert] @ hidden)
            out[token] = step(out[token] + weights[token, slot] * result)
    answer.check(out.bfloat16())
    assert float((answer.bound / answer.value.abs()).median()) < 0.2, "the bound must say something"
    with pytest.raises(AssertionError, match="as a whole"):
        answer.check((out * 1.02).bfloat16())
    out[3, 7] *= 1.5
    with pytest.raises(AssertionError):
        answer.check(out.bfloat16())


def test_check_sees_nan_shapes_and_places() -> None:
    answer = Answer(torch.zeros(2, 3, dtype=torch.float64), torch.full((2, 3), 0.1, dtype=torch.float64))
    answer.check(torch.full((2, 3), 0.05))
    got = torch.zeros(2, 3)
    got[1, 2] = torch.nan
    with pytest.raises(AssertionError, match=r"first at \(1, 2\)"):
        answer.check(got)
    with pytest.raises(AssertionError, match="shape"):
        answer.check(torch.zeros(3, 2))
    nan = Answer(torch.full((1,), torch.nan, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    nan.check(torch.tensor([torch.nan]))
    with pytest.raises(AssertionError):
        nan.check(torch.tensor([0.0]))


def test_a_result_beyond_its_dtype_is_infinity_of_its_sign() -> None:
    weight, x = random_weight(2, 32, scales=(127, 127)), torch.full((1, 32), 2.0**127).bfloat16()
    weight.codes[0], weight.codes[1] = 0x22, 0x10  # 32 * 2^127, and 16 halves of it
    weight.scales[1] = 121  # 2^124, which bfloat16 holds
    answer = judge.linear(x, weight, None, Numerics())
    right = torch.tensor([[torch.inf, 2.0**124]]).bfloat16()
    answer.check(right)
    for wrong in ([1.0, 2.0**124], [torch.inf, torch.inf], [torch.inf, torch.nan]):
        with pytest.raises(AssertionError, match="beyond the bound"):
            answer.check(torch.tensor([wrong]).bfloat16())
    plain = Answer(torch.full((1,), 2.0**130, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    plain.rounded(torch.bfloat16).check(torch.tensor([torch.inf]).bfloat16())
    for wrong_value in (-torch.inf, torch.nan, 2.0**127):
        with pytest.raises(AssertionError, match="beyond the bound"):
            plain.rounded(torch.bfloat16).check(torch.tensor([wrong_value]).bfloat16())
    largest = Answer(
        torch.tensor([torch.finfo(torch.bfloat16).max], dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
    )
    with pytest.raises(AssertionError, match="beyond the bound"):
        largest.rounded(torch.bfloat16).check(torch.tensor([torch.inf]).bfloat16())


def test_an_infinite_activation_makes_infinite_results_and_nothing_else() -> None:
    weight, x = random_weight(3, 32, scales=(127, 127)), random_x(2, 32)
    weight.codes[0], weight.codes[1], weight.codes[2] = 0x22, 0xAA, 0x00
    x[1, 5] = torch.inf
    answer = judge.linear(x, weight, None, Numerics())
    got = (x.float() @ weight.dequantize(torch.float32).T).bfloat16()
    assert got[1].tolist()[:2] == [torch.inf, -torch.inf] and bool(got[1, 2].isnan())
    answer.check(got)
    got[1, 2] = torch.inf  # infinity times zero is NaN
    with pytest.raises(AssertionError, match="beyond the bound"):
        answer.check(got)


def test_sums_beyond_float32_may_be_anything_but_a_wrong_number() -> None:
    """Large products that cancel: the sum in some order is infinite or NaN."""
    weight, x = random_weight(2, 64, scales=(127, 127)), torch.ones(1, 64).bfloat16()
    weight.codes[0, :16], weight.codes[0, 16:] = 0x22, 0xAA
    x[0, :] = 2.0**124
    weight.scales[1] = 3
    answer = judge.linear(x, weight, None, Numerics())
    exact = judge.linear(x, weight, None, Numerics()).value
    assert float(exact[0, 0]) == 0.0
    for found in (0.0, torch.inf, -torch.inf, torch.nan):
        answer.check(torch.tensor([[found, float(exact[0, 1])]]).bfloat16())
        with pytest.raises(AssertionError, match=r"first at \(0, 1\)"):
            answer.check(torch.tensor([[0.0, found if found else 3.0]]).bfloat16())
    with pytest.raises(AssertionError, match=r"first at \(0, 0\)"):
        answer.check(torch.tensor([[2.0**127, float(exact[0, 1])]]).bfloat16())


def test_a_hidden_state_beyond_its_dtype_loses_its_token_and_no_other() -> None:
    gate_up, down = (random_weight(2, 64, 32, scales=(120, 122)), random_weight(2, 32, 32, scales=(120, 122)))
    x, ids, weights = random_x(3, 32), torch.tensor([[0], [1], [1]]), torch.ones(3, 1)
    gate_up.codes[0], gate_up.scales[0] = 0x22, 250
    x[0] = 3.0
    form = Gate(limit=None)
    answer = judge.moe(x, gate_up, down, (None, None), ids, weights, form, Numerics())
    got = answer.value.clone()
    got[0] = torch.nan
    answer.check(got.bfloat16())
    got[0] = 1.0
    with pytest.raises(AssertionError, match=r"first at \(0"):
        answer.check(got.bfloat16())
    got[0], got[1, 3] = torch.nan, torch.nan
    with pytest.raises(AssertionError, match=r"first at \(1, 3\)"):
        answer.check(got.bfloat16())
