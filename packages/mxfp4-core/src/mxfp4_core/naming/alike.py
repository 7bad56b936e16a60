"""Names that numbers of layers and experts alone set apart: what is decided about one of them holds for all.

A model has a hundred thousand names and some dozens of kinds of them. Where no pattern of a config can tell numbers
apart, the decision about a name follows from its words, its shape and what a model provider says about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from mxfp4_core.naming.decision import Decision
from mxfp4_core.naming.view import ModelView

_NUMBER: Final = re.compile(r"\.[0-9]{1,6}(?=\.)")
_LAYER: Final = re.compile(r"(?:^|\.)layers\.([0-9]{1,6})(?=\.)")
_QUOTED: Final = re.compile(r"'[0-9]+'")


class Known(NamedTuple):
    """What is known about names of one kind.

    Attributes:
        decision: about one of them.
        groups: the wholes that it is a part of: how many components of the name they begin with, and how they end.
    """

    decision: Decision
    groups: tuple[tuple[int, str], ...]


class Alike:
    """Remembers decisions by kind of name.

    Args:
        view: what a model provider says, if one does.
        layers: number of layers, behind which there are draft layers; None if unknown.
    """

    def __init__(self, view: ModelView | None, layers: int | None) -> None:
        self._view, self._layers = view, layers
        self._known: dict[object, Known] = {}

    def kind(self, name: str, shape: Sequence[int] | None) -> object | None:
        """Return what a decision about a name follows from, or None for a name that stands for itself."""
        layer = _LAYER.search(name) if self._layers is not None else None
        if layer is not None and self._layers is not None and int(layer[1]) >= self._layers:
            return None
        shape = None if shape is None else tuple(shape)
        if self._view is None:
            return _NUMBER.sub(".0", name), shape
        found = self._view.find(name)
        if any(each.tied_to for each in found):
            return None
        module = name.removesuffix(".weight")
        if self._view.finer(module) or self._view.coarser(module):
            return None
        exact = self._view.names(name)
        return _NUMBER.sub(".0", name), shape, exact, tuple((each.kind, each.keep) for each in found)

    def find(self, kind: object | None) -> Known | None:
        """Return what is known about names of a kind."""
        return None if kind is None else self._known.get(kind)

    def remember(self, kind: object | None, name: str, decision: Decision, groups: Iterable[str]) -> None:
        """Note a decision, unless it tells more of the name than its kind."""
        if kind is None or decision.name != name or decision.pattern or _QUOTED.search(decision.reason):
            return
        placed = []
        for group in groups:
            parent, dot, last = group.rpartition(".")
            if parent and not name.startswith(f"{parent}."):
                return
            placed.append((parent.count(".") + 1 if parent else 0, f"{dot}{last}"))
        self._known[kind] = Known(decision, tuple(placed))


def again(known: Known, name: str) -> Decision:
    """Return what is known, about another name."""
    decision = known.decision
    return Decision(
        name,
        decision.quantize,
        decision.reason,
        profile=decision.profile,
        activation=decision.activation,
        format=decision.format,
        row=decision.row,
    )


def part_of(name: str, count: int, ending: str) -> str:
    """Return the whole that a name is a part of; see `Known`."""
    at = -1
    for _ in range(count):
        at = name.index(".", at + 1)
    return name[: max(at, 0)] + ending


__all__ = ["Alike", "Known", "again", "part_of"]
