"""Read tensors in the order in which they will be asked for, some buffers ahead, with threads.

For accelerators: the buffers are pinned, so that a device copies out of them at the speed of its bus while the next
ones are filled. A tensor that is mapped into memory is copied at a fraction of it, page fault by page fault.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from mxfp4_core.checkpoint.direct import Span, read_past_cache, room
from mxfp4_core.checkpoint.header import TensorInfo, read_bytes

CHUNK_BYTES = 1 << 24
"""Size of a buffer; more where one row needs it."""

BUFFERS = 8
THREADS = 4


@dataclass(frozen=True)
class Rows:
    """Tensors that lie one below the other, as one matrix.

    Attributes:
        parts: tensors ``[..., k]`` of one k and dtype, in the order of the rows.
    """

    parts: tuple[TensorInfo, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        first = self.parts[0]
        return first.nbytes // math.prod(first.shape[:-1])

    def chunks(self, most: int) -> Iterator[tuple[int, list[tuple[TensorInfo, int, int]]]]:
        """Cut into whole rows of at most ``most`` bytes, or one row.

        Returns:
            The bytes of each chunk, and what it is made of: a tensor, its first byte, the number of bytes.
        """
        size = max(1, most // self.row_bytes) * self.row_bytes
        pieces: list[tuple[TensorInfo, int, int]] = []
        filled = 0
        for info in self.parts:
            start = 0
            while start < info.nbytes:
                count = min(info.nbytes - start, size - filled)
                pieces.append((info, start, count))
                start, filled = start + count, filled + count
                if filled == size:
                    yield filled, pieces
                    pieces, filled = [], 0
        if filled:
            yield filled, pieces


@dataclass(frozen=True)
class _Buffer:
    """Memory that is filled again and again; ``room`` where it can be read past the cache."""

    tensor: torch.Tensor
    room: mmap.mmap | None = None


class ReadAhead:
    """Reads matrices in a given order, and gives each out as chunks of rows.

    Args:
        jobs: the matrices, in the order in which `take` will be called.
        pinned: allocate page-locked buffers, which needs an accelerator.
        chunk_bytes: size of a buffer.
        buffers: how many there are at most.
        threads: how many of them are filled at once.
        once: whether nobody will read the same again, so that the cache of the operating system is left alone.
    """

    def __init__(
        self,
        jobs: Iterable[Rows | Span],
        *,
        pinned: bool,
        chunk_bytes: int = CHUNK_BYTES,
        buffers: int = BUFFERS,
        threads: int = THREADS,
        once: bool = False,
    ) -> None:
        jobs = list(jobs)
        self._pinned, self._once = pinned, once
        self._bytes = max([chunk_bytes, *(job.row_bytes for job in jobs)])
        self._left = deque((job, *chunk) for job in jobs for chunk in job.chunks(self._bytes))
        self._turn = {id(job): number for number, job in enumerate(jobs)}
        self._next = 0
        self._free: deque[_Buffer | None] = deque([None] * buffers)
        self._running: deque[tuple[Rows | Span, Future[tuple[_Buffer, int, int]]]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mxfp4-read")

    def take(self, job: Rows | Span) -> Iterator[torch.Tensor] | None:
        """Return the chunks of a matrix, uint8 on the CPU, or None where its turn is over.

        A chunk is valid until the next one is asked for. Matrices that come before this one and were not taken
        are dropped.
        """
        turn = self._turn.get(id(job), -1)
        if turn < self._next:
            return None
        self._next = turn + 1
        return self._chunks(job)

    def close(self) -> None:
        """Stop reading and give the memory back; nothing can be taken afterwards."""
        self._next = len(self._turn)
        self._left.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._running.clear()
        self._free.clear()

    def _chunks(self, job: Rows | Span) -> Iterator[torch.Tensor]:
        found = False
        self._fill()
        while self._running and (self._running[0][0] is job or not found):
            mine, future = self._running.popleft()
            buffer, at, size = future.result()
            try:
                if mine is job:
                    found = True
                    yield buffer.tensor[at : at + size]
            finally:
                self._free.append(buffer)
                self._fill()

    def _fill(self) -> None:
        while self._left and self._free:
            job, size, pieces = self._left.popleft()
            future = self._pool.submit(self._read, self._free.popleft(), size, pieces)
            self._running.append((job, future))

    def _read(
        self, buffer: _Buffer | None, size: int, pieces: Sequence[tuple[TensorInfo, int, int]]
    ) -> tuple[_Buffer, int, int]:
        if buffer is None:  # made here, since pinning takes its time
            buffer = self._buffer()
        if buffer.room is not None and len(pieces) == 1:
            return buffer, read_past_cache(*pieces[0], buffer.room), size
        view, at = buffer.tensor.numpy().data, 0
        for info, start, count in pieces:
            read_bytes(info, start, view[at : at + count])
            at += count
        return buffer, 0, size

    def _buffer(self) -> _Buffer:
        if self._once and not self._pinned:
            memory = room(self._bytes)
            return _Buffer(torch.frombuffer(memory, dtype=torch.uint8), memory)
        return _Buffer(torch.empty(self._bytes, dtype=torch.uint8, pin_memory=self._pinned))


__all__ = ["BUFFERS", "CHUNK_BYTES", "THREADS", "ReadAhead", "Rows"]
