"""Parse and check the header of a GGUF file; torch-free.

Layout: magic, version, number of tensors and of settings, the settings, a row for each tensor (name, axes from the
innermost outwards, type, offset), zeros up to the alignment, the data. Every count and length is held against the bytes
that the file really has before anything is made of it, and products are exact integers: none of 64 bits wraps.
Sources: ggml ``docs/gguf.md`` and ``gguf.cpp``; faults of that kind in other readers: CVE-2026-33298, CVE-2026-7482.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from mxfp4_core.checkpoint.header import MAX_HEADER_BYTES, TensorInfo, damaged
from mxfp4_core.checkpoint.places import opened

SUFFIX: Final = ".gguf"
MXFP4_TYPE: Final = 39
Q8_0_TYPE: Final = 8
BLOCK_BYTES: Final = 17
"""Bytes of a block of MXFP4: one of scale and 16 of codes."""

MAGIC, _VERSIONS, ALIGNMENT, _MOST_AXES = b"GGUF", (2, 3), 32, 4
_MOST_TENSORS: Final = 1 << 18
_LONGEST_KEPT: Final = 1 << 16
"""Longer strings among the settings are skipped."""

PLAIN: Final = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
# Values and bytes of a block of the other types: they are passed over, and not read as weights.
_BLOCKS: Final = {
    MXFP4_TYPE: (32, 17), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66),
    17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136),
    29: (256, 56), 34: (256, 54), 35: (256, 66), 40: (64, 36), 41: (128, 18),
}  # fmt: skip
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
FORMS: Final = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
STRING, ARRAY = 8, 9
_FIX: Final = (
    "get the file again from where it was published; do not use it if it comes from nobody you trust"
)


@dataclass(frozen=True)
class GgufHeader:
    """What a file says before its data.

    Attributes:
        settings: numbers, truth values and short strings by key; lists are left out.
        tensors: by name; blocks of MXFP4 are U8 ``[..., K/32, 17]``, of Q8_0 ``[..., K/32, 34]``, of other types
        ``[bytes]``. types: numbers of the types, by name. sha256: hash of the header.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    types: Mapping[str, int]
    sha256: str


class _Reader:
    """Takes numbers and strings from a file, none behind its end."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self._file, self.size = path, file, size
        self.at = 0
        self.hash = hashlib.sha256()

    def take(self, count: int, what: str) -> bytes:
        self.claim(count, what)
        data = self._file.read(count)
        if len(data) != count:
            self.refuse(f"end of file in {what}", "the file does not change while it is read")
        self.at += count
        self.hash.update(data)
        return data

    def claim(self, count: int, what: str) -> None:
        """Refuse more bytes than the file has left, or than a header may have."""
        left = min(self.size, MAX_HEADER_BYTES) - self.at
        if count > left:
            self.refuse(f"{what} of {count} bytes, {left} are left", "what the header claims is in the file")

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def text(self, what: str) -> str:
        raw = self.take(self.number("<Q", f"length of {what}"), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.refuse(f"{what}: {error.reason}", "names and texts are UTF-8")

    def refuse(self, seen: str, rule: str) -> NoReturn:
        damaged(self.path, seen, rule, _FIX)


def read_gguf(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Raises:
        CheckpointError: no regular file, cut short, or breaking a rule of the format.
    """
    try:
        with opened(path) as (file, size):
            return _read(_Reader(path, file, size))
    except OSError as error:
        damaged(path, str(error), "the file can be read", "check the path and its permissions")


def _read(reader: _Reader) -> GgufHeader:
    magic = reader.take(4, "the magic number")
    version = reader.number("<I", "the version")
    if magic != MAGIC or version not in _VERSIONS:
        seen = f"magic {magic!r}, version {version}"
        rule = (
            f"a GGUF file starts with {MAGIC!r} and version {' or '.join(map(str, _VERSIONS))}, little-endian"
        )
        reader.refuse(seen, rule)
    tensors, settings = (
        reader.number("<Q", "the number of tensors"),
        reader.number("<Q", "the number of settings"),
    )
    if tensors > _MOST_TENSORS:
        reader.refuse(f"{tensors} tensors", f"there are at most {_MOST_TENSORS}")
    reader.claim(tensors * 24 + settings * 13, f"{tensors} tensors and {settings} settings")
    found = _settings(reader, settings)
    alignment = found.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        reader.refuse(f"general.alignment = {alignment!r}", "it is a power of two from 8 on")
    rows = [_row(reader) for _ in range(tensors)]
    digest, start = reader.hash.hexdigest(), _rounded(reader.at, alignment)
    infos: dict[str, TensorInfo] = {}
    types: dict[str, int] = {}
    at = 0
    for name, axes, kind, offset in rows:
        if name in infos:
            reader.refuse(f"tensor {name!r} twice", "each tensor is stored once")
        dtype, shape, nbytes = _stored(reader, name, axes, kind)
        if offset != at:
            reader.refuse(f"tensor {name!r} at {offset}, {at} is next", "tensors follow one another, aligned")
        if start + offset + nbytes > reader.size:
            seen = f"tensor {name!r} up to byte {start + offset + nbytes} of {reader.size}"
            reader.refuse(seen, "the data that the header claims is in the file")
        infos[name] = TensorInfo(name, dtype, shape, reader.path, start + offset, start + offset + nbytes)
        types[name] = kind
        at = _rounded(offset + nbytes, alignment)
    end = max((info.stop for info in infos.values()), default=reader.size)
    if reader.size - end >= alignment:
        reader.refuse(f"{reader.size} bytes, the last tensor stops at {end}", "the tensors fill the file")
    return GgufHeader(found, infos, types, digest)


def _settings(reader: _Reader, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seen: set[str] = set()
    for _ in range(count):
        key = reader.text("the key of a setting")
        if key in seen:
            reader.refuse(f"setting {key[:80]!r} twice", "each key is there once")
        seen.add(key)
        kind = reader.number("<I", f"type of {key[:80]!r}")
        if kind == ARRAY:
            _skip_array(reader, key)
        elif kind == STRING:
            value = reader.text(f"value of {key[:80]!r}")
            if len(value) <= _LONGEST_KEPT:
                found[key] = value
        elif kind in FORMS:
            found[key] = reader.number(FORMS[kind], f"value of {key[:80]!r}")
        else:
            reader.refuse(f"setting {key[:80]!r} of type {kind}", "types of settings are 0 to 12")
    return found


def _skip_array(reader: _Reader, key: str) -> None:
    kind, count = reader.number("<I", f"type of {key[:80]!r}"), reader.number("<Q", f"length of {key[:80]!r}")
    if kind == STRING:
        reader.claim(count * 8, f"{count} texts of {key[:80]!r}")
        for _ in range(count):
            reader.take(reader.number("<Q", f"length of a text of {key[:80]!r}"), f"a text of {key[:80]!r}")
    elif kind in _SIZES:
        reader.take(count * _SIZES[kind], f"{count} values of {key[:80]!r}")
    else:
        reader.refuse(f"list {key[:80]!r} of type {kind}", "lists hold numbers, truth values or texts")


def _row(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.text("the name of a tensor")
    count = reader.number("<I", f"axes of {name[:80]!r}")
    if count > _MOST_AXES or not name:
        reader.refuse(
            f"tensor {name[:80]!r} with {count} axes", f"a tensor has a name and at most {_MOST_AXES} axes"
        )
    axes = tuple(reader.number("<Q", f"axes of {name[:80]!r}") for _ in range(count))
    return (
        name,
        axes,
        reader.number("<I", f"type of {name[:80]!r}"),
        reader.number("<Q", f"offset of {name[:80]!r}"),
    )


def _stored(reader: _Reader, name: str, axes: tuple[int, ...], kind: int) -> tuple[str, tuple[int, ...], int]:
    """Return dtype, shape and bytes."""
    shape, values = tuple(reversed(axes)), math.prod(axes)
    if values >= 1 << 63:
        reader.refuse(f"tensor {name[:80]!r} of {list(shape)}", "its values can be counted in 63 bits")
    if (word := PLAIN.get(kind)) is not None:
        nbytes = values * {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "I8": 1}.get(word, 2)
        return word, shape, nbytes
    if kind not in _BLOCKS:
        reader.refuse(f"tensor {name[:80]!r} of type {kind}", "the type is one of ggml's")
    block, size = _BLOCKS[kind]
    if not shape or shape[-1] % block:
        reader.refuse(f"tensor {name[:80]!r} of {list(shape)}", f"its rows are whole blocks of {block}")
    nbytes = values // block * size
    if kind in (MXFP4_TYPE, Q8_0_TYPE):
        return "U8", (*shape[:-1], shape[-1] // block, size), nbytes
    return "U8", (nbytes,), nbytes


def _rounded(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


__all__ = [
    "ALIGNMENT", "ARRAY", "BLOCK_BYTES", "FORMS", "MAGIC", "MXFP4_TYPE", "PLAIN", "Q8_0_TYPE", "STRING", "SUFFIX",
    "GgufHeader", "read_gguf",
]  # fmt: skip
