"""Parse and check the header of one safetensors file; torch-free.

Layout of the file: 8 bytes little-endian length ``n``, ``n`` bytes of UTF-8 JSON (padded with white space), then
the data. The format's own rules are checked here, before anything else looks at the file, because the bytes
may come from anyone. Source: the safetensors format description,
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import operator
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from mxfp4_core.checkpoint.magic import READ, recognised
from mxfp4_core.checkpoint.remote import RemotePath, read_range
from mxfp4_core.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""Largest header that safetensors itself accepts."""

_GUESS = 1 << 17  # of a remote file: most headers are shorter, others take one request more

MAX_AXES = 16
"""More axes than any weight has; a bound so that a hostile shape costs nothing."""

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits per element of every safetensors dtype."""

_PADDING = b" \t\r\n"
"""What may follow the header's JSON: the format says spaces, and safetensors reads all that JSON skips."""

_MINUS_ZERO = re.compile(rb"-0\s*[,\]}]")

_AGAIN = "get the file again from where it was published and compare its size or hash"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, as its header describes it.

    Args:
        name: name in the checkpoint.
        dtype: safetensors dtype, for example ``"BF16"``.
        shape: sizes of the axes in elements.
        file: the file that holds it.
        start: absolute offset of the first byte in that file.
        stop: absolute offset behind the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Return the size of the data in bytes."""
        return self.stop - self.start

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one index of the first axis; all bytes when there is no axis or no row."""
        return self.nbytes // self.shape[0] if self.shape and self.shape[0] else self.nbytes


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str], str]:
    """Read and check the header of one safetensors file.

    Returns:
        The tensors in the order of their data, the ``__metadata__`` strings, and the sha256 of the header.

    Raises:
        CheckpointError: the file is no regular file, is cut short, or breaks a rule of the format.
    """
    size, raw = _header_bytes(path)
    entries = parse_json(raw, path)
    metadata = _metadata(entries.pop("__metadata__", {}), path)
    base = 8 + len(raw)
    tensors = [_tensor(name, entry, base, path) for name, entry in entries.items()]
    tensors.sort(key=operator.attrgetter("start", "stop"))
    _check_data_covered(tensors, base, size, path)
    return {info.name: info for info in tensors}, metadata, hashlib.sha256(raw).hexdigest()


def read_bytes(info: TensorInfo, start: int, buffer: memoryview) -> None:
    """Fill a writable buffer of bytes with a tensor's data from byte ``start`` on; other threads run meanwhile.

    Raises:
        CheckpointError: a range outside of the tensor, or a file that shrank since its header was read.
    """
    if start < 0 or start + len(buffer) > info.nbytes:
        seen = f"bytes {start} to {start + len(buffer)} of tensor {info.name!r} with {info.nbytes} bytes"
        damaged(info.file, seen, "ranges lie inside the tensor", "pass a smaller range")
    try:
        if isinstance(info.file, RemotePath):
            buffer[:] = read_range(info.file, info.start + start, info.start + start + len(buffer))
            return
        with open(info.file, "rb", buffering=0) as file:
            file.seek(info.start + start)
            while len(buffer):
                count = file.readinto(buffer)  # the kernel moves at most 2 GiB at a time
                if not count:
                    rule = "the file does not change while it is read"
                    damaged(info.file, f"end of file in tensor {info.name!r}", rule)
                buffer = buffer[count:]
    except OSError as error:
        damaged(info.file, str(error), "the file can be read", "check the disk and the permissions")


def parse_json(raw: bytes, path: Path, *, constants: bool = False) -> dict[str, Any]:
    """Parse bytes from outside as one JSON object.

    Args:
        raw: the bytes.
        path: where they are from.
        constants: whether ``NaN`` and ``Infinity`` are read, which Python writes and JSON does not have.

    Raises:
        CheckpointError: no UTF-8, no JSON, a key twice, a number that is out of range, too deep, or no object.
    """
    constant = float if constants else _no_constant
    integer = _whole if not constants and _MINUS_ZERO.search(raw) else int  # a function of ours is slow
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=constant,
            parse_float=_in_range,
            parse_int=integer,
        )
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode(
                "utf-8"
            )  # a lone surrogate parses but cannot be printed
    except (ValueError, RecursionError) as error:
        if told := recognised(raw[:READ]):
            damaged(path, told[0], "the text is valid JSON in UTF-8", told[1])
        damaged(
            path,
            f"{type(error).__name__}: {str(error)[:200]}",
            "the text is valid JSON in UTF-8, each key once",
        )
    if not isinstance(value, dict):
        damaged(path, f"a JSON {type(value).__name__}", "the text is one JSON object")
    return value


def damaged(path: Path | str, seen: str, rule: str, fix: str = _AGAIN) -> NoReturn:
    """Raise the error for a file that breaks a rule of its format."""
    raise CheckpointError(f"cannot read {path}", seen=seen, rule=rule, fix=fix)


def _header_bytes(path: Path) -> tuple[int, bytes]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            damaged(path, "not a regular file", "weights are regular files", "pass a .safetensors file")
        with _opened(path) as (file, size):
            prefix = file.read(8)
            if len(prefix) < 8:
                damaged(
                    path,
                    f"{size} bytes",
                    "a safetensors file starts with 8 bytes that hold the header's length",
                )
            length = int.from_bytes(prefix, "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                if told := recognised(prefix + file.read(READ), text=True):
                    damaged(path, told[0], "weights are safetensors files", told[1])
                rule = f"the header has 2 to {MAX_HEADER_BYTES} bytes and fits into the file"
                damaged(path, f"header length {length} in a file of {size} bytes", rule)
            raw = file.read(length)
    except OSError as error:
        damaged(path, str(error), "the file can be read", "check the path and its permissions")
    if len(raw) != length:
        damaged(path, f"{len(raw)} of {length} header bytes", "the header is complete")
    if raw[:1] != b"{" or raw.rstrip(_PADDING)[-1:] != b"}":
        damaged(
            path,
            f"header {raw[:8]!r} ... {raw[-8:]!r}",
            "the header is one JSON object, and behind it only spaces and ends of lines",
        )
    return size, raw


def _beginning(path: RemotePath, size: int) -> bytes:
    """Return the start of a remote file: the length of its header, and the header as far as the file has it."""
    found = read_range(path, 0, min(size, _GUESS))
    length = int.from_bytes(found[:8], "little")
    stop = min(size, 8 + length) if length <= MAX_HEADER_BYTES else 0
    return found if stop <= len(found) else found + read_range(path, len(found), stop)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file, or what the header needs of a remote one, and say how long it is."""
    if isinstance(path, RemotePath):
        size = path.stat().st_size
        yield io.BytesIO(_beginning(path, size)), size
        return
    with open(path, "rb") as file:
        yield file, os.fstat(file.fileno()).st_size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {twice!r} occurs twice")
    return result


def _whole(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is no integer: safetensors takes it for a number with a fraction")
    return int(text)


def _in_range(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is larger than any number of 64 bits")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON value")


def _metadata(value: object, path: Path) -> dict[str, str]:
    if value is None:  # safetensors reads null as nothing
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        damaged(path, f"__metadata__ = {str(value)[:80]}", "__metadata__ maps strings to strings")
    return {str(key): str(item) for key, item in value.items()}


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


_KEYS = frozenset({"dtype", "shape", "data_offsets"})


def _words(name: str, entry: object) -> str:
    return f"tensor {name!r}: {str(entry)[:120]}"


def _tensor(name: str, entry: object, base: int, path: Path) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        damaged(path, _words(name, entry), "each tensor has exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        damaged(path, _words(name, entry), f"dtype is one of {' '.join(DTYPE_BITS)}")
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(map(_is_size, shape)):
        damaged(
            path, _words(name, entry), f"shape is a list of at most {MAX_AXES} integers from 0 to 2**63 - 1"
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        damaged(path, _words(name, entry), "data_offsets are two integers from 0 to 2**63 - 1")
    start, stop = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if start > stop or bits % 8 or bits // 8 != stop - start:
        rule = f"data_offsets span the bytes that shape and dtype need ({bits / 8:g})"
        damaged(path, _words(name, entry), rule)
    return TensorInfo(name, dtype, tuple(shape), path, base + start, base + stop)


def _check_data_covered(tensors: list[TensorInfo], base: int, size: int, path: Path) -> None:
    end = base
    for info in tensors:
        if info.start != end:
            seen = f"tensor {info.name!r} starts at byte {info.start}, the one before it stops at {end}"
            damaged(path, seen, "the tensors follow one another without gap or overlap")
        end = info.stop
    if end != size:
        damaged(path, f"{size} bytes where the header describes {end}", "the tensors fill the file exactly")


__all__ = [
    "DTYPE_BITS", "MAX_HEADER_BYTES", "TensorInfo", "damaged", "parse_json", "read_bytes", "read_header",
]  # fmt: skip
