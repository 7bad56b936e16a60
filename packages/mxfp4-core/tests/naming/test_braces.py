from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.naming.braces import collapse


def test_numbers_become_ranges() -> None:
    assert collapse(["a.0.b", "a.1.b", "a.3.b"]) == ["a.{0-1, 3}.b"]
    assert collapse(["a.0.b.1", "a.0.b.2", "a.1.b.1"]) == ["a.0.b.{1-2}", "a.1.b.1"]


def test_names_from_anyone() -> None:
    assert collapse(["a.*.0", "a.*.1", "*"]) == ["a.*.{0-1}", "*"]
    big = "9" * 5000
    assert collapse([f"a.{big}", "a.7"]) == [f"a.{big}", "a.7"]


NUMBERS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20)


@given(NUMBERS, st.booleans())
def test_collapsed_names_stand_for_exactly_the_names(pairs: list[tuple[int, int]], other: bool) -> None:
    names = {f"layers.{first}.experts.{second}.up" for first, second in pairs} | (
        {"head"} if other else set()
    )
    found = [name for line in collapse(sorted(names)) for name in _expand(line)]
    assert sorted(found) == sorted(names)


def _expand(line: str) -> list[str]:
    if "{" not in line:
        return [line]
    head, _, rest = line.partition("{")
    inside, _, tail = rest.partition("}")
    names: list[str] = []
    for run in inside.split(", "):
        low, _, high = run.partition("-")
        for number in range(int(low), int(high or low) + 1):
            names += _expand(f"{head}{number}{tail}")
    return names
