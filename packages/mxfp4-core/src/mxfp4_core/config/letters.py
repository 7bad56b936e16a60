"""What a part of a regular expression says about one letter, in the words of Python's parser."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Final

# Python's own parser and its words; both have had these names since 3.11.
constants: Any = import_module("re._constants")
parse: Any = import_module("re._parser").parse

Test = Callable[[str], bool]


class UnboundedError(ValueError):
    """An expression that cannot be matched in bounded time, or not here."""


def test_of(op: Any, what: Any, flags: int) -> Test:
    """Return what says whether a letter is taken."""
    small = bool(flags & re.IGNORECASE)
    if op is constants.ANY:
        return _anything if flags & re.DOTALL else partial(_is_not, "\n")
    if op in (constants.LITERAL, constants.NOT_LITERAL):
        found: Test = partial(_is, chr(what), small)
        return found if op is constants.LITERAL else partial(_none_of, (found,))
    if op is constants.IN:
        negated = what[0][0] is constants.NEGATE
        tests = tuple(_member(kind, member, small) for kind, member in what[negated:])
        return partial(_none_of, tests) if negated else partial(_one_of, tests)
    raise UnboundedError(f"it uses {str(op).lower()}, which has no bound on its time")


def _member(op: Any, what: Any, small: bool) -> Test:
    if op is constants.RANGE:
        return partial(_between, chr(what[0]), chr(what[1]), small)
    if op is constants.CATEGORY:
        return partial(_of_kind, re.compile(_CATEGORIES[what]))
    return partial(_is, chr(what), small)


_CATEGORIES: Final = {
    constants.CATEGORY_DIGIT: r"\d",
    constants.CATEGORY_NOT_DIGIT: r"\D",
    constants.CATEGORY_SPACE: r"\s",
    constants.CATEGORY_NOT_SPACE: r"\S",
    constants.CATEGORY_WORD: r"\w",
    constants.CATEGORY_NOT_WORD: r"\W",
}


def _anything(letter: str) -> bool:
    return True


def _is_not(other: str, letter: str) -> bool:
    return letter != other


def _is(other: str, small: bool, letter: str) -> bool:
    return letter == other or (small and letter.lower() == other.lower())


def _between(first: str, last: str, small: bool, letter: str) -> bool:
    cases = (letter, letter.lower(), letter.upper()) if small else (letter,)
    return any(first <= each <= last for each in cases)


def _of_kind(kind: re.Pattern[str], letter: str) -> bool:
    return kind.match(letter) is not None


def _one_of(tests: tuple[Test, ...], letter: str) -> bool:
    return any(test(letter) for test in tests)


def _none_of(tests: tuple[Test, ...], letter: str) -> bool:
    return not _one_of(tests, letter)


__all__ = ["Test", "UnboundedError", "constants", "parse", "test_of"]
