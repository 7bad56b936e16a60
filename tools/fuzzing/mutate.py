"""Make hostile bytes from good ones: changes of bytes, and changes of what a JSON text means."""

from __future__ import annotations

import json
import random
from typing import Any

_BYTES = b'\x00\xff{}[]",:\\0129-.eE \n\t\x1bnulltruefalseNaN\xc3\xed\xa0\x80'
_TEXTS = (
    "",
    "a",
    "..",
    "../x",
    "/etc/passwd",
    "x" * 300,
    "\x1b[2J",
    "\n",
    "\u202e",
    "\x00",
    "9" * 5000,
    "re:(a+)+$",
    "*",
)
_NUMBERS = (0, -1, 1, 2, 31, 32, 33, 255, 2**31, 2**63 - 1, 2**63, 2**64, 10**40, 0.5, -0.0, 1e308, 1e-320)


def changed(rng: random.Random, seed: bytes, other: bytes) -> bytes:
    """Return a mutation of ``seed``: of its bytes, or of the JSON object in it where it is one.

    Args:
        rng: decides.
        seed: what is changed.
        other: another good input, from which pieces may be taken.
    """
    if rng.random() < 0.5:
        start = seed.find(b"{")
        if start >= 0:
            try:
                return seed[:start] + json_changed(rng, seed[start:])
            except ValueError:  # more than the object, as in a file with data behind it
                pass
    return bytes_changed(rng, seed, other)


def bytes_changed(rng: random.Random, seed: bytes, other: bytes) -> bytes:
    """Return bytes with one to four changes."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1) if data else 0
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice(_BYTES)
        elif kind == 2:
            data[at:at] = bytes([rng.choice(_BYTES)])
        elif kind == 3:
            del data[at : at + rng.randrange(1, 20)]
        elif kind == 4:
            data[at:at] = data[at : at + rng.randrange(1, 60)]
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            cut = rng.randrange(len(other) + 1)
            data[at : at + rng.randrange(40)] = other[cut : cut + rng.randrange(1, 60)]
        else:
            data[at:at] = rng.choice(
                (b"[" * 3000, b"9" * 5000, b'{"a":' * 400, b"\\u0000", b"\\ud800", b"Infinity")
            )
    return bytes(data)


def json_changed(rng: random.Random, text: bytes) -> bytes:
    """Return the text of a JSON value with one to three of its parts changed.

    Raises:
        ValueError: it is none.
    """
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _part_changed(rng, value)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _part_changed(rng: random.Random, value: Any) -> Any:
    """Change one part, found by going down at random."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.randrange(10)
        if kind == 0:
            return {name: part for name, part in value.items() if name != key}
        if kind == 1:
            return {(_name(rng, name) if name == key else name): part for name, part in value.items()}
        if kind == 2:
            return {**value, _name(rng, key): value[key]}
        return {**value, key: _part_changed(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        kind = rng.randrange(6)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return [*value, value[at]]
        return [*value[:at], _part_changed(rng, value[at]), *value[at + 1 :]]
    return _another(rng, value)


def _another(rng: random.Random, value: Any) -> Any:
    kind = rng.randrange(9)
    if kind == 0:
        return None
    if kind == 1:
        return rng.choice((True, False))
    if kind == 2:
        return rng.choice(_NUMBERS)
    if kind == 3:
        return rng.choice(_TEXTS)
    if kind == 4:
        return [value] * rng.randrange(3)
    if kind == 5:
        return {"a": value} if rng.random() < 0.5 else {}
    if isinstance(value, str) and value:
        return _name(rng, value)
    if isinstance(value, int):
        return value + rng.choice((-1, 1, 32, -value, value))
    return rng.choice(_NUMBERS)


def _name(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at] + rng.choice(_TEXTS) + text[at:]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    if kind == 2:
        return text[:at]
    return text[:at] + chr(rng.choice((9, 46, 48, 57, 92, 0x661, 0xB2, 0x2028, 0xD800, 0x1F600))) + text[at:]


__all__ = ["bytes_changed", "changed", "json_changed"]
