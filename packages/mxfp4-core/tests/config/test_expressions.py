"""Expressions mean what they mean to `re`, and none of them takes longer than its size times that of a name."""

from __future__ import annotations

import re
import time
from random import Random

import pytest

from mxfp4_core.config.expressions import Expression
from mxfp4_core.config.letters import UnboundedError
from mxfp4_core.config.patterns import Pattern
from mxfp4_core.errors import PatternError

LETTERS = "abcABx1.3\n_"
ATOMS = ("a", "b", "c", r"\.", ".", "[ab]", "[^a]", r"\d", r"\W", "[0-3]", "1", r"\b", r"\B", "^", "$", r"\Z")


def made(random: Random, depth: int) -> str:
    """Return an expression, made at random."""
    choice = random.random()
    if depth == 0 or choice < 0.35:
        return random.choice(ATOMS)
    inner = made(random, depth - 1)
    if choice < 0.5:
        return inner + made(random, depth - 1)
    if choice < 0.6:
        return f"(?:{inner}|{made(random, depth - 1)})"
    if choice < 0.8:
        return f"(?:{inner}){random.choice(('*', '+', '?', '{2}', '{1,3}', '*?', '+?', '{2,}'))}"
    if choice < 0.9:
        return f"({random.choice(('?=', '?!'))}{inner})"
    return f"(?i:{inner})"


@pytest.mark.parametrize("seed", range(8))
def test_expressions_mean_what_they_mean_to_python(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 2:  # without the way round by `re` itself
        monkeypatch.setattr("mxfp4_core.config.expressions._FEW_WAYS", 0)
    random = Random(seed)
    matched = 0
    for _ in range(150):
        body = made(random, random.randint(1, 5))
        theirs, ours = re.compile(body), Expression(body)
        for _ in range(10):
            text = "".join(random.choices(LETTERS, k=random.randint(0, 7)))
            assert ours.fullmatch(text) == bool(theirs.fullmatch(text)), (body, text)
            matched += ours.fullmatch(text)
    assert matched > 50


HOSTILE = [
    "(a+)+b",
    "(a|a)*b",
    "(a|aa)+$b",
    "(.*)*x",
    ".*.*.*.*.*.*.*.*x",
    "(?:(?=.*y).)*",
    "(?=(?=(?=.*a).*a).*a).*b",
    "(a?){60}b",
    "a?" * 60 + "a" * 60 + "b",
    "(a|b|ab)*c",
    "(?!(a+)+b).*x",
    "([a-z]+)*\\d",
]


@pytest.mark.parametrize("body", HOSTILE)
def test_nothing_blows_up(body: str) -> None:
    start = time.process_time()
    Pattern.parse(f"re:{body}").matches("a" * 600)
    assert time.process_time() - start < 2  # `re` takes longer than anybody waits


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (r"(?P<x>a)(?P=x)", "groupref"),
        (r"(?<=ab)c", "assert"),
        ("((a{1,50}){1,50}){1,50}", "20000 states"),
        ("a{99999999999}", "OverflowError"),
        ("(" * 900 + ")" * 900, "nested"),
        ("(?a:a)|(?m:b)", "flags"),
    ],
)
def test_what_has_no_bound_is_refused(body: str, why: str) -> None:
    with pytest.raises(UnboundedError, match=why):
        Expression(body)
    with pytest.raises(PatternError, match="cannot be read") as caught:
        Pattern.parse(f"re:{body}")
    assert "bounded time" in caught.value.rule


def test_a_name_that_would_take_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mxfp4_core.config.expressions.MOST_STEPS", 10_000)
    with pytest.raises(PatternError, match="cannot be read"):
        Pattern.parse("re:(?:(?=.*y).)*").matches("a" * 5000)
