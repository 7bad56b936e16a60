"""One weight file of a new checkpoint: the units that it is made of, and the task that writes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mxfp4_core.checkpoint.gguf_writer import writer_of
from mxfp4_core.checkpoint.overlap import ahead
from mxfp4_core.checkpoint.tasks import Progress
from mxfp4_core.checkpoint.writer import TensorSpec


class Unit(Protocol):
    """A piece of the checkpoint that is written by itself, from one tensor of the source; it can be pickled."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors that it writes, in order; they stay together in one file."""
        ...

    @property
    def source_bytes(self) -> int:
        """Bytes that it reads."""
        ...

    def stream(self, progress: Progress) -> Iterator[tuple[str, memoryview]]:
        """Yield the data of the tensors in order; a piece is used up before the next one is asked for.

        Of a unit with a true ``runs_ahead`` pieces stay valid: it runs in a thread, while they are hashed and written.
        """
        ...


@dataclass(frozen=True)
class ShardTask:
    """Write one weight file.

    Args:
        path: where it appears when it is complete.
        units: what it holds, in order.
        metadata: what its header says beside the tensors; None if it is as the library of safetensors writes it.
    """

    path: Path
    units: tuple[Unit, ...]
    metadata: tuple[tuple[str, Any], ...] | None = ()

    @property
    def specs(self) -> list[TensorSpec]:
        """The tensors of the file, in order."""
        return [spec for unit in self.units for spec in unit.specs]

    @property
    def source_bytes(self) -> int:
        """Bytes that are read."""
        return sum(unit.source_bytes for unit in self.units)

    def run(self, progress: Progress) -> dict[str, Any]:
        """Write the file and return its ``size``, its ``sha256`` and the sha256 of its ``tensors``.

        Raises:
            OutputError: the file cannot be written.
            Mxfp4Error: whatever a unit raises.
        """
        metadata = None if self.metadata is None else dict(self.metadata)
        with writer_of(self.path, self.specs, metadata) as writer:
            for unit in self.units:
                stream = unit.stream(progress)
                for tensor, piece in ahead(stream) if getattr(unit, "runs_ahead", False) else stream:
                    writer.write(tensor, piece)
        return {
            "size": self.path.stat().st_size,
            "sha256": writer.sha256,
            "tensors": dict(writer.tensor_sha256),
        }


__all__ = ["ShardTask", "Unit"]
