"""Write a safetensors file whose tensors come in another order than it has them.

What a weight is quantised to comes part by part, the large one first. A file that has tensors in the order of the
safetensors library begins with the widest, so each goes to its own place; the file is hashed when all are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mxfp4_core.checkpoint.sinks import PlacedSink, placed_sink_for
from mxfp4_core.checkpoint.writer import NOTHING, ShardWriter, TensorSpec, header_bytes


class PlacedWriter(ShardWriter):
    """Stream tensors into one file, each to its own place; otherwise a `ShardWriter`.

    Args:
        path: where the file appears when all is written.
        specs: the tensors in the order in which their data comes.
        stored: the same in the order of the file.
        metadata: what the header says beside them; None for a header without a place for that.
    """

    def __init__(
        self,
        path: Path,
        specs: Sequence[TensorSpec],
        stored: Sequence[TensorSpec],
        metadata: Mapping[str, Any] | None = NOTHING,
    ) -> None:
        super().__init__(path, specs, metadata)
        self._start = header_bytes(stored, metadata)
        self._places: dict[str, int] = {}
        offset = len(self._start)
        for spec in stored:
            self._places[spec.name] = offset
            offset += spec.nbytes

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write bytes of a tensor; see `ShardWriter.write`."""
        if not self._done and name in self._places:
            self._placed.seek(self._places[name])
        super().write(name, data)

    def _header(self) -> bytes:
        return self._start

    def _opened(self, nbytes: int) -> PlacedSink:
        self._placed = placed_sink_for(self.path, nbytes)
        return self._placed

    def _written(self, data: memoryview) -> None:
        """Leave the hash of the file to the end."""

    def _complete(self) -> None:
        for piece in self._placed.pieces():
            self._file_hash.update(piece)
        super()._complete()


__all__ = ["PlacedWriter"]
