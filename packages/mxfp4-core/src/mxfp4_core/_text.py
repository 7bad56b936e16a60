"""Words that every room needs for its messages: near misses, and sizes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_UNITS = (("GiB", 30), ("MiB", 20), ("KiB", 10))


def nearest(text: str, choices: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the choices that ``text`` was most likely meant to be, best first."""
    return difflib.get_close_matches(text, list(dict.fromkeys(choices)), n=count, cutoff=cutoff)


def did_you_mean(text: str, choices: Iterable[str], otherwise: str, *, cutoff: float = 0.5) -> str:
    """Return ``did you mean 'x'?`` for the nearest of the choices, or what to do if none is near."""
    near = nearest(text, choices, count=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else otherwise


def size_text(count: int) -> str:
    """Return a number of bytes for people: ``3.2 GiB``, ``64.0 MiB``, ``1.5 KiB`` or ``17 B``."""
    for unit, shift in _UNITS:
        if count >= 1 << shift:
            return f"{count / (1 << shift):.1f} {unit}"
    return f"{count} B"


__all__ = ["did_you_mean", "nearest", "size_text"]
