"""Many names as few lines: ``model.layers.{0-47}.mlp.experts.{0-127}.up_proj.weight``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mxfp4_core._text import INDEX
from mxfp4_core.naming.vocabulary import ranges

_Parts = tuple[str | None, ...]  # of a name, None for each number


def template(name: str) -> str:
    """Return the name with every number that is a component of its own replaced by ``*``."""
    return INDEX.sub("*", name)


def collapse(names: Iterable[str]) -> list[str]:
    """Return names that differ only in numbers as one each, with the numbers as ranges in braces.

    Args:
        names: names of tensors or modules.

    Returns:
        One line for each set of names that the ranges describe exactly; names that do not form such a set are
        split along their first number.
    """
    alike: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for name in dict.fromkeys(names):
        numbers = tuple(map(int, INDEX.findall(name)))
        alike.setdefault((*INDEX.split(name),), []).append(numbers)
    return [line for texts, found in alike.items() for line in _lines(_parts(texts), found)]


def _parts(texts: Sequence[str]) -> _Parts:
    """Return the parts of a name from what lies between its numbers, with the dots: ``a.`` and ``.b`` of ``a.0.b``."""
    parts: list[str | None] = []
    last = len(texts) - 1
    for number, text in enumerate(texts):
        parts += [None] if number else []
        inner = text[bool(number) : len(text) - (number < last)]
        # Between two numbers there is one dot at least, and at either end of a name there may be nothing.
        if text != ("." if 0 < number < last else "") or not last:
            parts += inner.split(".")
    return tuple(parts)


def _lines(parts: _Parts, numbers: Sequence[tuple[int, ...]]) -> list[str]:
    columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    product = 1
    for column in columns:
        product *= len(column)
    if product == len(numbers):
        return [_fill(parts, columns)]
    # Group by everything after the first number, so that equal layers share a line.
    layers_of: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first in columns[0]:
        rest = tuple(sorted(each[1:] for each in numbers if each[0] == first))
        layers_of.setdefault(rest, []).append(first)
    lines = []
    for rest, layers in layers_of.items():
        inner = [sorted(set(column)) for column in zip(*rest, strict=True)]
        exact = 1
        for column in inner:
            exact *= len(column)
        filled = [_fill(parts, [layers, *inner])] if exact == len(rest) else None
        lines += filled or [_fill(parts, [layers, *([number] for number in each)]) for each in rest]
    return lines


def _fill(parts: _Parts, columns: Sequence[Sequence[int]]) -> str:
    shown = iter([str(column[0]) if len(column) == 1 else f"{{{ranges(column)}}}" for column in columns])
    return ".".join(next(shown) if part is None else part for part in parts)


__all__ = ["collapse", "template"]
