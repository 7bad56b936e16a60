"""Let the disk begin with bytes that were written, so that the wait at the end is one for the last of them."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

_WRITE = 2  # SYNC_FILE_RANGE_WRITE of linux/fs.h: begin, and do not wait


def begin_writing(descriptor: int, start: int, count: int) -> None:
    """Have Linux begin to write a range of a file to the disk; elsewhere nothing happens.

    Advice only: an error of the disk is kept for ``fsync``, which has to follow in any case.
    """
    if (begin := _sync_file_range()) is not None:
        begin(descriptor, start, count, _WRITE)


@cache
def _sync_file_range() -> Any:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


__all__ = ["begin_writing"]
