"""Write one GGUF file as a stream, as `ShardWriter` writes safetensors: sizes first, the data in order, hashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mxfp4_core.checkpoint.gguf import SUFFIX, gguf_header
from mxfp4_core.checkpoint.placed import PlacedWriter
from mxfp4_core.checkpoint.writer import ShardWriter, TensorSpec, header_bytes, library_key


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


__all__ = ["GgufWriter", "header_of", "writer_of"]
