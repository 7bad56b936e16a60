"""Scale rules against exact rational arithmetic."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.arithmetic.scales import RULES, ScaleRule
from mxfp4_core.errors import ConfigError

NAMES = [*RULES, "ceil_d(7.25)", "ceil_d(6)", "ceil_d(4.5)"]
POSITIVE = st.floats(min_value=2.0**-149, max_value=3.4028234663852886e38)


def smallest_exponent(amax: float, rule: ScaleRule) -> int:
    """The definition, by search in exact arithmetic."""
    a, limit = Fraction(amax), Fraction(rule.limit)
    exponent = -200
    while not (
        a < limit * Fraction(2) ** exponent or (not rule.strict and a == limit * Fraction(2) ** exponent)
    ):
        exponent += 1
    return exponent


@pytest.mark.parametrize("name", NAMES)
@given(amax=POSITIVE)
def test_exponent_is_the_definition(name: str, amax: float) -> None:
    rule = ScaleRule.parse(name)
    assert int(rule.exponent(torch.tensor(amax, dtype=torch.float64))) == smallest_exponent(amax, rule)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("power", [-126, -3, 0, 5, 120])
def test_boundary_of_each_rule(name: str, power: int) -> None:
    rule = ScaleRule.parse(name)
    edge = rule.limit * 2.0**power
    below, above = (float(torch.nextafter(torch.tensor(edge), torch.tensor(to))) for to in (0.0, 3e38))
    exponents = rule.exponent(torch.tensor([below, edge, above], dtype=torch.float64)).tolist()
    assert exponents == [power, power + 1 if rule.strict else power, power + 1]


def test_names_in_words_are_the_same_rules() -> None:
    a = torch.rand(10_000, dtype=torch.float64) * 100 + 1e-9
    log2 = torch.log2(a)
    assert torch.equal(RULES["floor"].exponent(a), (torch.floor(log2) - 2).int())
    assert torch.equal(RULES["ceil"].exponent(a), (torch.ceil(log2) - 2).int())
    assert torch.equal(RULES["rceil"].exponent(a), torch.ceil(torch.log2(a / 6)).int())
    # EVEN as the peers write it: add a quarter to the mantissa bits and keep the exponent field.
    bits = (a.float().view(torch.int32) + 0x200000) >> 23
    assert torch.equal(RULES["even"].exponent(a.float().double()), bits - 127 - 2)


@pytest.mark.parametrize(
    "name", ["evn", "", "round", "ceil_d", "ceil_d()", "ceil_d(3.9)", "ceil_d(8.1)", "ceil_d(4..5)"]
)
def test_unknown_rules_are_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ScaleRule.parse(name)
    assert caught.value.rule
    assert caught.value.fix


def test_near_miss_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'even'"):
        ScaleRule.parse("evne")
