"""What several messages of this package have in common."""

from __future__ import annotations

from collections.abc import Sequence

_MOST = 5


def some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


__all__ = ["some"]
