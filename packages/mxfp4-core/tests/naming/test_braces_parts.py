"""Names collapse as their components say, whatever stands between the dots."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core._text import is_index
from mxfp4_core.naming.braces import collapse, template

COMPONENTS = st.sampled_from(
    ["a", "b", "", "*", "0", "7", "12", "123456789", "1234567890", "x1", "٣", "{0-1}", " 3"]
)
NAMES = st.lists(COMPONENTS, min_size=1, max_size=5).map(".".join)


@given(NAMES)
def test_numbers_are_components_of_their_own(name: str) -> None:
    assert template(name) == ".".join("*" if is_index(part) else part for part in name.split("."))
    assert collapse([name]) == [name]


@given(st.lists(NAMES, max_size=6, unique=True))
def test_lines_stand_for_all_names_and_no_other(names: list[str]) -> None:
    plain = [name for name in names if not re.search(r"[{}]", name)]
    found = []
    for line in collapse(plain):
        every = [""]
        for piece in re.split(r"(\{[^}]*\})", line):
            choices = [piece]
            if piece.startswith("{"):
                ends = [text.split("-") for text in piece[1:-1].split(", ")]
                choices = [
                    str(i) for first, *last in ends for i in range(int(first), int((last or [first])[0]) + 1)
                ]
            every = [text + choice for text in every for choice in choices]
        found += every
    assert sorted(found) == sorted(plain)
