"""Words that every room needs for its messages: near misses, sizes, and names that may come from anyone."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
"""For memory, in steps of 1024."""

_DIGITS: Final = 10
_DECIMAL_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def nearest(text: str, choices: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the choices that ``text`` was most likely meant to be, best first; upper and lower case are alike."""
    known: dict[str, list[str]] = {}
    for choice in dict.fromkeys(choices):
        known.setdefault(choice.casefold(), []).append(choice)
    near = difflib.get_close_matches(text.casefold(), list(known), n=count, cutoff=cutoff)
    return [choice for each in near for choice in known[each]][:count]


def did_you_mean(text: str, choices: Iterable[str], otherwise: str, *, cutoff: float = 0.5) -> str:
    """Return ``did you mean 'x'?`` for the nearest of the choices, or what to do if none is near."""
    near = nearest(text, choices, count=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else otherwise


def size_text(count: int, digits: int = 1) -> str:
    """Return a number of bytes in memory for people: ``3.2 GiB``, ``64.0 MiB``, ``1.5 KiB`` or ``17 B``."""
    for power in (3, 2, 1):
        if count >= 1024**power:
            return f"{count / 1024**power:.{digits}f} {BINARY_UNITS[power]}"
    return f"{count} B"


def short_size_text(count: int) -> str:
    """Return a number of bytes in memory with three digits that count.

    >>> short_size_text(512), short_size_text(1536), short_size_text(5 * 2**30)
    ('512 B', '1.50 KiB', '5.00 GiB')
    """
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(BINARY_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    if unit == 0:
        return f"{count} B"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {BINARY_UNITS[unit]}"


def disk_text(count: int) -> str:
    """Return a number of bytes on disk in the units of ``--max-shard-size``: ``5.00 GB``, ``1.50 kB``, ``17 bytes``."""
    for unit, factor in _DECIMAL_UNITS:
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} bytes"


def is_index(part: str) -> bool:
    """Return whether a part of a name is the number of a layer or expert; with more digits it is a name."""
    return part.isdecimal() and part.isascii() and len(part) < _DIGITS


INDEX: Final = re.compile(rf"(?<![^.])[0-9]{{1,{_DIGITS - 1}}}(?![^.])")
"""A component of a name that is a number, as `is_index` says; for who asks about many names."""


def printable(text: str) -> str:
    r"""Return the text with control characters and invisible formatting replaced by ``\x`` escapes.

    Names come from files that anyone may have written; a terminal or a reviewer must see what is there.

    >>> printable("a\x1b[31m\nb")
    'a\\x1b[31m\\x0ab'
    """
    if text.isprintable():
        return text
    return "".join(_escape(char) if unicodedata.category(char) in _HIDDEN else char for char in text)


_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


__all__ = [
    "BINARY_UNITS",
    "did_you_mean",
    "disk_text",
    "nearest",
    "printable",
    "short_size_text",
    "size_text",
]
