"""Write one GGUF file as a stream, as `ShardWriter` writes safetensors: sizes first, the data in order, hashed."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mxfp4_core.checkpoint.gguf import ALIGNMENT, ARRAY, FORMS, MAGIC, MXFP4_TYPE, PLAIN, STRING, SUFFIX
from mxfp4_core.checkpoint.placed import PlacedWriter
from mxfp4_core.checkpoint.writer import ShardWriter, TensorSpec, header_bytes, library_key
from mxfp4_core.errors import CheckpointError

_WORDS: Final = {word: number for number, word in PLAIN.items()}


class GgufWriter(ShardWriter):
    """Stream tensors into one GGUF file.

    Args:
        path: where the file appears when all is written.
        specs: the tensors in the order in which their data comes.
        metadata: the settings of the file, by key.
    """

    def __init__(self, path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, Any]) -> None:
        super().__init__(path, specs, metadata)
        self._start, self._padding = gguf_header(specs, metadata)

    def _header(self) -> bytes:
        return self._start

    def _close_tensor(self) -> None:
        number = self._next
        super()._close_tensor()
        self._put(bytes(self._padding[number]))


def writer_of(path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, Any] | None) -> ShardWriter:
    """Return what writes a file of this name; without metadata, as the library of safetensors would write it."""
    if path.suffix == SUFFIX:
        return GgufWriter(path, specs, metadata or {})
    stored = specs if metadata is not None else sorted(specs, key=library_key)
    return (
        ShardWriter(path, specs, metadata) if stored == specs else PlacedWriter(path, specs, stored, metadata)
    )


def header_of(name: str, specs: Sequence[TensorSpec], metadata: Mapping[str, Any] | None) -> bytes:
    """Return the header of a file of this name."""
    if name.endswith(SUFFIX):
        return gguf_header(specs, metadata or {})[0]
    return header_bytes(specs if metadata is not None else sorted(specs, key=library_key), metadata)


def gguf_header(specs: Sequence[TensorSpec], settings: Mapping[str, Any]) -> tuple[bytes, list[int]]:
    """Return the header for tensors stored in this order, up to the data, and the bytes of zero behind each of them.

    Args:
        specs: U8 ``[..., K/32, 17]`` is MXFP4, floats are themselves.
        settings: texts, truth values, integers, floats and lists of one kind of them by key.

    Raises:
        CheckpointError: a number that has no room in 32 bits.
    """
    out = [MAGIC, struct.pack("<IQQ", 3, len(specs), len(settings))]
    for key, value in settings.items():
        out += [_text(key), _value(key, value)]
    offset, padding = 0, []
    for spec in specs:
        mx = spec.dtype == "U8"
        shape = (*spec.shape[:-2], spec.shape[-2] * 32) if mx else spec.shape
        out.append(_text(spec.name) + struct.pack("<I", len(shape)))
        out.append(
            struct.pack(
                f"<{len(shape)}QIQ", *reversed(shape), MXFP4_TYPE if mx else _WORDS[spec.dtype], offset
            )
        )
        padding.append(-spec.nbytes % ALIGNMENT)
        offset += spec.nbytes + padding[-1]
    text = b"".join(out)
    return text + bytes(-len(text) % ALIGNMENT), padding


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    try:
        if isinstance(value, list):
            return struct.pack("<I", ARRAY) + _list(value)
        kind = 7 if isinstance(value, bool) else 4 if isinstance(value, int) else 6
        return struct.pack("<I", kind) + struct.pack(FORMS[kind], value)
    except (struct.error, OverflowError) as error:
        raise CheckpointError(
            "cannot write the header of a GGUF file",
            seen=f"{key} = {str(value)[:80]}: {error}",
            rule="integers have 32 bits, those outside of lists no sign, and floats are no larger than F32 has them",
            fix="correct the number in config.json",
        ) from error


def _list(values: list[Any]) -> bytes:
    """Return kind, length and values; integers have a sign, as ggml reads the kinds of tokens."""
    count = struct.pack("<Q", len(values))
    if values and isinstance(values[0], str):
        return struct.pack("<I", STRING) + count + b"".join(map(_text, values))
    kind = 6 if values and isinstance(values[0], float) else 5
    return struct.pack("<I", kind) + count + struct.pack(f"<{len(values)}{FORMS[kind][1:]}", *values)


__all__ = ["GgufWriter", "gguf_header", "header_of", "writer_of"]
