"""Stacks of experts as single linears, which is how formats without a word for stacks are public."""

from __future__ import annotations

from dataclasses import replace

from mxfp4_core.dialects.base import Entry
from mxfp4_core.naming.vocabulary import module_of, parse_expert


def one_by_one(entry: Entry) -> list[Entry]:
    """Return the linears of a stack of experts, gate and up apart; any other weight as it is.

    A stack that the model holds with K before N stays, too: its experts have no linears that anybody loads.

    Args:
        entry: a weight ``[N, K]``, or a stack ``[E, N, K]`` in which gate is above up, or rows of both alternate.
    """
    expert = parse_expert(module_of(entry.weight))
    stacked = len(entry.shape) == 3 and expert is not None and expert.index is None
    if not stacked or expert is None or entry.transposed or entry.shape[1] % len(expert.parts):
        return [entry]
    count, n, k = entry.shape
    rows = n // len(expert.parts)
    made: list[Entry] = []
    for number in range(count):
        own = {
            key: part.take(number, number + 1).reshape(*part.shape[1:]) for key, part in entry.parts.items()
        }
        for place, name in enumerate(expert.parts):
            start, stop, step = (place, n, 2) if entry.interleaved else (place * rows, (place + 1) * rows, 1)
            parts = {key: part.take(start, stop, step) for key, part in own.items()}
            weight = f"{expert.leaf(number, name)}.weight"
            made.append(replace(entry, weight=weight, shape=(rows, k), parts=parts, interleaved=False))
    return made


__all__ = ["one_by_one"]
