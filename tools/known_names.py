"""How sizes follow from the settings of a config, and names from numbers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from known_probes import FREE, Seen

Slots = tuple[int, ...]


class Expressions:
    """Finds how a number follows from the settings of a config: a constant, a setting, a product of two, a multiple."""

    def __init__(self, seen: Sequence[Seen]) -> None:
        self._settings = [each.settings for each in seen]
        base = self._settings[0]
        self._keys = [
            key for key, value in base.items() if type(value) is int and value > 0 and not FREE.search(key)
        ]
        self._found: dict[tuple[int | None, ...], Any] = {}

    def of(self, values: Sequence[int | None]) -> Any:
        """Return an int, a list [factor, setting, ...], or None. A value of None was not to be seen."""
        key = tuple(values)
        if key not in self._found:
            self._found[key] = self._search(key)
        return self._found[key]

    def _search(self, values: tuple[int | None, ...]) -> Any:
        rows = [
            (settings, value)
            for settings, value in zip(self._settings, values, strict=True)
            if value is not None
        ]
        if 2 * len(rows) < len(values):
            return None  # too seldom seen to say what it follows from
        if len({value for _, value in rows}) == 1:
            return rows[0][1]
        base, first = rows[0]
        pairs = [(key,) for key in self._keys]
        pairs += list(itertools.combinations_with_replacement(self._keys, 2))
        for keys in pairs:
            product = 1
            for key in keys:
                product *= base.get(key) or 0
            if not product or first % product or first // product > 8:
                continue
            factor = first // product
            if all(_product(settings, keys, factor) == value for settings, value in rows):
                return "*".join([*([str(factor)] if factor > 1 else []), *keys])
        return None


def _product(settings: Mapping[str, Any], keys: Sequence[str], factor: int) -> int | None:
    for key in keys:
        if type(settings.get(key)) is not int:
            return None
        factor *= settings[key]
    return factor


def counts_of(seen: Sequence[Seen], expressions: Expressions) -> dict[str, Any]:
    """Return the number of indices after each prefix of names, where it follows from the config; None where not."""
    sizes: dict[str, list[int | None]] = {}
    for index, each in enumerate(seen):
        for _, names in each.views.values():
            for name in names:
                parts = name.split(".")
                for place, part in enumerate(parts):
                    if part.isdigit():
                        key = ".".join("*" if each.isdigit() else each for each in parts[:place])
                        row = sizes.setdefault(key, [None] * len(seen))
                        row[index] = max(row[index] or 0, int(part) + 1)
    return {key: expressions.of(row) for key, row in sizes.items() if len({*row} - {None}) > 1}


def starred(name: str, counts: Mapping[str, Any]) -> tuple[str, Slots]:
    """Return a name with its indices taken out, and the indices; numbers that no config changes stay."""
    parts, plain, indices = name.split("."), list[str](), list[int]()
    kept = list[str]()
    for part in parts:
        if part.isdigit():
            if ".".join(plain) in counts:
                indices.append(int(part))
                kept.append("*")
            else:
                kept.append(part)
            plain.append("*")
        else:
            kept.append(part)
            plain.append(part)
    return ".".join(kept), tuple(indices)


def pointed(target: str, name: str, counts: Mapping[str, Any]) -> set[str]:
    """Return the templates of a target, by the indices of the name that becomes it: one for each way to follow."""
    plain, indices = starred(target, counts)
    _, given = starred(name, counts)
    choices = [[place for place, each in enumerate(given) if each == index] for index in indices]
    pieces = plain.split("*")
    found = set()
    for picked in itertools.product(*choices):
        text = pieces[0]
        for place, piece in zip(picked, pieces[1:], strict=True):
            text += f"{{{place}}}{piece}"
        found.add(text)
    return found
