"""Fresh memory in large pages.

The kernel hands out memory 4 KiB at a time, and each first touch of a page costs more than decoding what goes into it:
dequantising into fresh small pages is several times slower than into memory that was touched before. Linux gives 2 MiB
pages where it is asked to; elsewhere, and where the system forbids it, plain pages do.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

_WORTH_IT = 4 << 20  # bytes: two large pages
_SMALL_PAGE = 4096
_MADV_HUGEPAGE = 14  # linux/mman.h


@cache
def _madvise() -> Any:
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return ``torch.empty``, in large pages where it is a large CPU tensor and the system has them."""
    tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
    if device.type == "cpu" and tensor.nbytes >= _WORTH_IT and (madvise := _madvise()) is not None:
        start = -(-tensor.data_ptr() // _SMALL_PAGE) * _SMALL_PAGE
        # Advice only: a refusal (EINVAL, where the kernel has no large pages) leaves ordinary memory.
        madvise(
            start, (tensor.data_ptr() + tensor.nbytes - start) // _SMALL_PAGE * _SMALL_PAGE, _MADV_HUGEPAGE
        )
    return tensor


__all__ = ["empty"]
