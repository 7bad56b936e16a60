"""Read files of this machine past the cache of the operating system, into memory that is used again and again.

A checkpoint that is read once from end to end has no use for that cache. Copying out of it, and the first touch of
fresh memory, cost the processor more than quantising what was read. What lies in the cache already is taken from there.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mxfp4_core.checkpoint.header import TensorInfo, read_bytes
from mxfp4_core.checkpoint.remote import RemotePath

PAGE = max(4096, mmap.PAGESIZE)
"""File offset, address and length of such a read are multiples of it: no disk has larger sectors."""

_DIRECT: int = getattr(os, "O_DIRECT", 0)  # Linux


@dataclass(frozen=True)
class Span:
    """All bytes of one tensor, one behind the other.

    Attributes:
        info: the tensor.
        row_bytes: what is not divided; no more than ``most``.
        most: bytes that are read in one go.
    """

    info: TensorInfo
    row_bytes: int
    most: int

    def chunks(self, most: int) -> Iterator[tuple[int, list[tuple[TensorInfo, int, int]]]]:
        """Cut into whole rows of at most ``most`` bytes.

        Returns:
            The bytes of each chunk, and what it is made of: the tensor, its first byte, the number of bytes.
        """
        size = max(1, min(most, self.most) // self.row_bytes) * self.row_bytes
        for start in range(0, self.info.nbytes, size):
            count = min(size, self.info.nbytes - start)
            yield count, [(self.info, start, count)]


def room(nbytes: int) -> mmap.mmap:
    """Return memory for `read_past_cache` of up to so many bytes: whole pages, large ones where the system has them."""
    size = -(-nbytes // PAGE) * PAGE + 2 * PAGE  # what is read begins and ends inside a page
    if not _DIRECT:
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A process that is forked while the disk writes here would leave these bytes with one of the two (open(2)).
    memory.madvise(mmap.MADV_DONTFORK)
    with suppress(OSError):  # a kernel without large pages: advice only
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def read_past_cache(info: TensorInfo, start: int, count: int, memory: mmap.mmap) -> int:
    """Read bytes of a tensor into memory of `room`; other threads run meanwhile.

    Args:
        info: the tensor.
        start: its first byte that is read.
        count: how many.
        memory: at least the room for them.

    Returns:
        Where they begin in the memory.

    Raises:
        CheckpointError: a range outside of the tensor, or a file that shrank since its header was read.
    """
    first = info.start + start
    with memoryview(memory) as view:
        inside = start >= 0 and start + count <= info.nbytes
        at, filled = (first % PAGE, _filled(info.file, first, count, view)) if inside else (0, 0)
        # What is missing is read in the usual way, which also says what is wrong with the file.
        done = max(0, min(filled - at, count))
        if done < count:
            with view[at + done : at + count] as rest:
                read_bytes(info, start + done, rest)
        return at


def _filled(file: Path, first: int, count: int, view: memoryview) -> int:
    """Fill the memory from the page of byte `first` on, and return how many bytes there are now."""
    if isinstance(file, RemotePath) or not _DIRECT:
        return 0
    page = first // PAGE * PAGE
    need, filled = first - page + count, 0
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | _DIRECT)
        try:
            # Other file systems than those of a disk have no cache, or need it: a network, a union of folders.
            if not os.major(os.fstat(descriptor).st_dev) or _is_cached(descriptor, page, need):
                return 0
            while filled < need:
                with view[filled : -(-need // PAGE) * PAGE] as rest:
                    count = os.preadv(descriptor, [rest], page + filled)
                filled += count
                if not count or count % PAGE:  # the end of the file
                    break
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return 0  # `read_bytes` tells what is wrong, or can do what this file system cannot do here
    return filled


def _is_cached(descriptor: int, offset: int, count: int) -> bool:
    """Return whether most of a range of a file lies in the cache, also where this may not be known."""
    import numpy as np

    pages = mmap.mmap(descriptor, count, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=offset)
    there = ctypes.create_string_buffer(-(-count // mmap.PAGESIZE))
    failed = _mincore()(np.frombuffer(pages, np.uint8).ctypes.data, count, there)
    return not failed and there.raw.count(b"\0") * 2 < len(there)


@cache
def _mincore() -> Any:
    function = ctypes.CDLL(None).mincore
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    return function


__all__ = ["PAGE", "Span", "read_past_cache", "room"]
