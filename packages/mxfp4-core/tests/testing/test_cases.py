"""The named blocks against exact fractions, and against the quantizer."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.arithmetic.codec import unpack
from mxfp4_core.arithmetic.format import E2M1_VALUES
from mxfp4_core.arithmetic.quantize import quantize
from mxfp4_core.testing import cases, strategies
from mxfp4_core.testing.cases import BLOCKS, RULES, TIES, Block

LIMITS = {
    "floor": (8, True),
    "even": (7, True),
    "rceil": (6, False),
    "ceil": (4, False),
    "ceil_d(7.25)": (7.25, False),
}
MAGNITUDES = [Fraction(value) for value in E2M1_VALUES[:8]]


def exact(values: tuple[float, ...], rule: str, ties: str = "even") -> tuple[int, list[int]]:
    """Quantise by definition: the smallest exponent, the nearest magnitude."""
    limit, strict = LIMITS[rule]
    amax = max((abs(Fraction(value)) for value in values), default=Fraction(0))
    byte = 1
    if amax:
        power = math.frexp(amax)[1] - 6
        while amax > Fraction(limit) * Fraction(2) ** power or (
            strict and amax == limit * Fraction(2) ** power
        ):
            power += 1
        byte = min(max(power + 127, 1), 254)
    codes = []
    for value in values:
        quotient = abs(Fraction(value)) / Fraction(2) ** (byte - 127)
        nearest = min(abs(quotient - magnitude) for magnitude in MAGNITUDES)
        both = [code for code, magnitude in enumerate(MAGNITUDES) if abs(quotient - magnitude) == nearest]
        chosen = {"zero": both[0], "away": both[-1], "even": min(both, key=lambda code: code % 2)}[ties]
        codes.append(chosen | (8 if math.copysign(1, value) < 0 else 0))
    return byte, codes + [0] * (32 - len(values))


def quantised(
    block: Block, rule: str, ties: str = "even", dtype: torch.dtype = torch.bfloat16
) -> tuple[int, list[int]]:
    result = quantize(block.weight.to(dtype), rule=rule, ties=ties)
    return int(result.scales[0]), unpack(result.codes).tolist()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_expected_bytes(block: Block, rule: str) -> None:
    assert block.expected(rule) == exact(block.values, rule)
    assert block.expected(rule) == quantised(block, rule)
    assert block.expected(rule) == quantised(block, rule, dtype=torch.float32)


@pytest.mark.parametrize("ties", TIES)
def test_expected_ties(ties: str) -> None:
    block = next(block for block in BLOCKS if block.name == "ties")
    assert cases.parse(TIES[ties]) == exact(block.values, "even", ties) == quantised(block, "even", ties)


def test_blocks_are_bfloat16_numbers_with_names_of_their_own() -> None:
    assert len({block.name for block in BLOCKS}) == len(BLOCKS)
    for block in BLOCKS:
        assert torch.equal(block.weight.bfloat16().float(), block.weight), block.name


@given(strategies.weights(tails=True))
def test_drawn_weights_can_be_quantised(weight: torch.Tensor) -> None:
    assert bool(weight.isfinite().all())
    assert quantize(weight, tail="pad").shape == weight.shape


@given(st.data())
def test_drawn_splits_cover_everything_once(data: st.DataObject) -> None:
    size = data.draw(strategies.sizes())
    ranges = data.draw(strategies.splits(size, multiple=32))
    assert [one for low, high in ranges for one in range(low, high)] == list(range(size))
    assert all(low % 32 == 0 and low < high for low, high in ranges)


@given(strategies.ks(), strategies.ks(tails=True))
def test_drawn_k(whole: int, any_size: int) -> None:
    assert whole % 32 == 0 and 1 <= any_size <= 256
