"""Many names as few lines: ``model.layers.{0-47}.mlp.experts.{0-127}.up_proj.weight``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mxfp4_core._text import is_index
from mxfp4_core.naming.vocabulary import ranges


def template(name: str) -> str:
    """Return the name with every number that is a component of its own replaced by ``*``."""
    return ".".join("*" if is_index(part) else part for part in name.split("."))


def collapse(names: Iterable[str]) -> list[str]:
    """Return names that differ only in numbers as one each, with the numbers as ranges in braces.

    Args:
        names: names of tensors or modules.

    Returns:
        One line for each set of names that the ranges describe exactly; names that do not form such a set are
        split along their first number.
    """
    by_template: dict[str, list[tuple[int, ...]]] = {}
    for name in dict.fromkeys(names):
        numbers = tuple(int(part) for part in name.split(".") if is_index(part))
        by_template.setdefault(template(name), []).append(numbers)
    return [line for text, numbers in by_template.items() for line in _lines(text, numbers)]


def _lines(text: str, numbers: Sequence[tuple[int, ...]]) -> list[str]:
    columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    product = 1
    for column in columns:
        product *= len(column)
    if product == len(numbers):
        return [_fill(text, columns)]
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
        filled = [_fill(text, [layers, *inner])] if exact == len(rest) else None
        lines += filled or [_fill(text, [layers, *([number] for number in each)]) for each in rest]
    return lines


def _fill(text: str, columns: Sequence[Sequence[int]]) -> str:
    pieces = text.split("*")
    shown = [str(column[0]) if len(column) == 1 else f"{{{ranges(column)}}}" for column in columns]
    return "".join(piece + number for piece, number in zip(pieces, [*shown, ""], strict=True))


__all__ = ["collapse", "template"]
