"""Which features of a backend the suite has used, by op.

The pytest plug-in imports it at every start, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable

_words: set[str] = set()


def note(op: str, words: Iterable[str]) -> None:
    """Remember that a problem of ``op`` with these features is about to be computed."""
    _words.add(op)
    _words.update(f"{op}:{word}" for word in words if word != op)


def taken() -> frozenset[str]:
    """Return the words since the last call, and forget them."""
    found = frozenset(_words)
    _words.clear()
    return found


def missing(features: Iterable[str], seen: Iterable[str]) -> list[str]:
    """Return the features that no op has used: ``bias`` is used by ``linear:bias``, and ``moe:bias`` by itself only."""
    known = set(seen)
    used = known | {word.partition(":")[2] for word in known}
    return sorted(set(features) - used)


__all__ = ["missing", "note", "taken"]
