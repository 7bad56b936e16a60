"""Regular expressions in bounded time, because patterns come out of checkpoints: no expression can hang a load.

`re` tries one way after the other, and some expressions have more ways than anybody can wait for: ``(a+)+b``, or
``.*.*.*.*x``. Here all ways are followed at once (Thompson, 1968), so a name costs at most its length times the size of
the expression. Sets of states that were met are remembered, so that most names cost one look-up for each character;
and where there are few ways, `re` tries them. The syntax is Python's, read by its own parser; what cannot be had in
bounded time is refused: references to groups, and looking behind further than one letter.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Final

from mxfp4_core.config.letters import Test, UnboundedError, constants, parse, test_of

MOST_STATES: Final = 20_000
"""States of an expression; ``a{1000}`` takes a thousand."""

MOST_STEPS: Final = 10_000_000
"""States that a match may go through: seconds."""

_FLAGS: Final = re.IGNORECASE | re.DOTALL | re.UNICODE | re.VERBOSE
_MOST_SETS: Final = 5_000
_FEW_WAYS: Final = 1_000_000
"""Where `re` has no more ways to try than these, it is asked: it is faster."""
_LETTERS: Final = (constants.ANY, constants.LITERAL, constants.NOT_LITERAL, constants.IN)
_BOUNDARY: Final = re.compile(r"\b")
_INSIDE: Final = re.compile(r"\B")
_REPEATS: Final = (constants.MAX_REPEAT, constants.MIN_REPEAT)

States = frozenset[int]


class _Work:
    """What one match has cost so far, and which conditions are known to hold where."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], bool] = {}
        self._left = MOST_STEPS

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise UnboundedError(f"it takes more than {MOST_STEPS} steps for one name")


class Expression:
    """One expression, which matches whole texts.

    Args:
        body: as `re` takes it.

    Raises:
        re.error: the syntax is wrong.
        UnboundedError: it cannot be matched in bounded time.
    """

    def __init__(self, body: str) -> None:
        self._tests: list[Test | None] = []
        self._ways: list[list[int]] = []
        self._looks: dict[int, tuple[str, Any]] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python may mean by some set in the future
            try:
                tree, self._python = parse(body), re.compile(body)
            except (RecursionError, OverflowError) as error:
                raise UnboundedError(f"it is nested or repeated too much ({type(error).__name__})") from None
        self._end = self._state()
        try:
            self._start = self._sequence(list(tree), self._end, tree.state.flags)
        except RecursionError:
            raise UnboundedError("it is nested too much") from None
        self._factor, self._power = _ways(list(tree))
        self._sets: dict[tuple[States, str], States] = {}
        self._first = self._closed([self._start], "", 0, _Work()) if not self._looks else frozenset[int]()

    def fullmatch(self, text: str) -> bool:
        """Say whether the expression matches a whole text.

        Raises:
            UnboundedError: that would take more than `MOST_STEPS`: a very long text, and an expression made for that.
        """
        if self._factor * (len(text) + 1) ** self._power <= _FEW_WAYS:
            return self._python.fullmatch(text) is not None
        work = _Work()
        if self._looks:
            return any(end == len(text) for end in self._ends(self._start, self._end, text, 0, work))
        states = self._first
        for letter in text:
            if (after := self._sets.get((states, letter))) is None:
                after = self._closed(self._stepped(states, letter, work), "", 0, work)
                if len(self._sets) < _MOST_SETS:
                    self._sets[states, letter] = after
            if not after:
                return False
            states = after
        return self._end in states

    def _ends(self, start: int, end: int, text: str, place: int, work: _Work) -> Iterator[int]:
        """Yield every place up to which the states from ``start`` to ``end`` match from a place on."""
        states = self._closed([start], text, place, work)
        while states:
            if end in states:
                yield place
            if place == len(text):
                return
            stepped = self._stepped(states, text[place], work)
            place += 1
            states = self._closed(stepped, text, place, work)

    def _stepped(self, states: States, letter: str, work: _Work) -> list[int]:
        work.spend(len(states))
        tests = self._tests
        return [
            self._ways[state][0] for state in states if (test := tests[state]) is not None and test(letter)
        ]

    def _closed(self, states: Iterable[int], text: str, place: int, work: _Work) -> States:
        """Return the states that can be reached without a letter."""
        found, left = set[int](), [*states]
        while left:
            state = left.pop()
            if state in found:
                continue
            found.add(state)
            if self._tests[state] is None and self._holds(state, text, place, work):
                left += self._ways[state]
        work.spend(len(found))
        return frozenset(found)

    def _holds(self, state: int, text: str, place: int, work: _Work) -> bool:
        if state not in self._looks:
            return True
        if (known := work.known.get((state, place))) is None:
            kind, what = self._looks[state]
            if kind == "at":
                known = _at(what, text, place)
            elif kind == "behind":
                test, wanted = what
                known = (place > 0 and test(text[place - 1])) == wanted
            else:
                start, end, wanted = what
                known = (next(self._ends(start, end, text, place, work), None) is not None) == wanted
            work.known[state, place] = known
        return known

    def _state(self, test: Test | None = None, ways: Iterable[int] = ()) -> int:
        if len(self._tests) >= MOST_STATES:
            raise UnboundedError(f"it has more than {MOST_STATES} states")
        self._tests.append(test)
        self._ways.append([*ways])
        return len(self._tests) - 1

    def _sequence(self, items: list[Any], after: int, flags: int) -> int:
        """Add the states of items in a row; return the first one."""
        for op, what in reversed(items):
            after = self._item(op, what, after, flags)
        return after

    def _item(self, op: Any, what: Any, after: int, flags: int) -> int:
        if flags & ~_FLAGS:
            raise UnboundedError("it sets flags other than i, s and x")
        if op in _REPEATS:
            least, most, inner = what
            return self._repeat(least, most, inner, after, flags)
        if op is constants.BRANCH:
            return self._state(ways=[self._sequence(list(way), after, flags) for way in what[1]])
        if op is constants.SUBPATTERN:
            _, added, removed, inner = what
            return self._sequence(list(inner), after, (flags | added) & ~removed)
        if op is constants.AT:
            state = self._state(ways=[after])
            self._looks[state] = ("at", what)
            return state
        if op in (constants.ASSERT, constants.ASSERT_NOT) and what[0] > 0:
            end = self._state()
            start = self._sequence(list(what[1]), end, flags)
            state = self._state(ways=[after])
            self._looks[state] = ("look", (start, end, op is constants.ASSERT))
            return state
        if op in (constants.ASSERT, constants.ASSERT_NOT) and len(what[1]) == 1 and what[1][0][0] in _LETTERS:
            letter, of = what[1][0]
            state = self._state(ways=[after])
            self._looks[state] = ("behind", (test_of(letter, of, flags), op is constants.ASSERT))
            return state
        return self._state(test_of(op, what, flags), [after])

    def _repeat(self, least: int, most: Any, inner: Any, after: int, flags: int) -> int:
        items = list(inner)
        if most is constants.MAXREPEAT:
            loop = self._state()
            self._ways[loop] = [self._sequence(items, loop, flags), after]
            after = loop
        else:
            end = after
            for _ in range(int(most) - least):
                after = self._state(ways=[self._sequence(items, after, flags), end])
        for _ in range(least):
            after = self._sequence(items, after, flags)
        return after


def _ways(items: list[Any]) -> tuple[float, int]:
    """Return a bound on the ways that `re` may try: a factor, and a power of the length of the text."""
    factor, power = 1.0, 0
    for op, what in items:
        if op in _REPEATS:
            least, most, inner = what
            body, degree = _ways(list(inner))
            if most is not constants.MAXREPEAT and int(most) <= 1:
                factor, power = factor * 2 * body, power + degree
            elif len(inner) > 1 or inner[0][0] not in _LETTERS:
                return math.inf, 0  # what is repeated may itself match in several ways
            elif most is constants.MAXREPEAT:
                power += 1
            else:
                factor *= int(most) - least + 1
            continue
        groups: list[Any] = []
        if op is constants.BRANCH:
            groups = what[1]
        elif op is constants.SUBPATTERN:
            groups = [what[3]]
        elif op in (constants.ASSERT, constants.ASSERT_NOT):
            groups = [what[1]]
        if groups:
            found = [_ways(list(group)) for group in groups]
            factor, power = factor * sum(each for each, _ in found), power + max(each for _, each in found)
    return factor, power


def _at(what: Any, text: str, place: int) -> bool:
    if what in (constants.AT_BEGINNING, constants.AT_BEGINNING_STRING):
        return place == 0
    if what is constants.AT_END_STRING:
        return place == len(text)
    if what is constants.AT_END:
        return place == len(text) or (place == len(text) - 1 and text[place] == "\n")
    # Python's own answer, which is not the same in every release for an empty text.
    return (_INSIDE if what is constants.AT_NON_BOUNDARY else _BOUNDARY).match(text, place) is not None


__all__ = ["MOST_STATES", "Expression", "UnboundedError"]
