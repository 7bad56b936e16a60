"""One weight file of a new checkpoint: the units that it is made of, and the task that writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mxfp4_core.checkpoint.direct import Span
from mxfp4_core.checkpoint.gguf_writer import writer_of
from mxfp4_core.checkpoint.overlap import ahead
from mxfp4_core.checkpoint.tasks import Progress
from mxfp4_core.checkpoint.writer import TensorSpec

if TYPE_CHECKING:
    from mxfp4_core.checkpoint.ahead import ReadAhead

BUFFERS = 4
"""Chunks that are in memory at once: one is used, one waits, two are read."""

THREADS = 2
"""How many are read at once: a disk is faster when it has the next request before it has answered."""


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

    @property
    def stream(self) -> Callable[..., Iterator[tuple[str, memoryview]]]:
        """Yield the data of the tensors in order; a piece is used up before the next one is asked for.

        Of a unit with a true ``runs_ahead`` pieces stay valid: it runs in a thread, while they are hashed and written.
        It is called with a `Progress`, and where ``reads`` of the unit is a `Span` also with the chunks of that, as
        `ReadAhead.take` gives them.
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
            for tensor, piece in self._pieces(progress):
                writer.write(tensor, piece)
        return {
            "size": self.path.stat().st_size,
            "sha256": writer.sha256,
            "tensors": dict(writer.tensor_sha256),
        }

    def _pieces(self, progress: Progress) -> Iterator[tuple[str, memoryview]]:
        """Yield the data of all units in order; while some is used up, the next is read and made."""
        read = [(unit, getattr(unit, "reads", None)) for unit in self.units]
        with _reader([span for _, span in read if span is not None]) as reader:
            for in_thread, some in groupby(read, lambda pair: getattr(pair[0], "runs_ahead", False)):
                pieces = chain.from_iterable(
                    unit.stream(progress) if span is None else unit.stream(progress, reader.take(span))
                    for unit, span in list(some)
                )
                yield from ahead(pieces) if in_thread else pieces


@contextmanager
def _reader(spans: list[Span]) -> Iterator[ReadAhead]:
    """Read some tensors ahead, while the body runs."""
    from mxfp4_core.checkpoint.ahead import ReadAhead

    most = max((span.most for span in spans), default=1)
    reader = ReadAhead(spans, pinned=False, chunk_bytes=most, buffers=BUFFERS, threads=THREADS, once=True)
    try:
        yield reader
    finally:
        reader.close()


__all__ = ["ShardTask", "Unit"]
