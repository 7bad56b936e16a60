"""Spread blocks over CPU threads. Kernels release the GIL, so plain threads do; there is no thread layer to choose.

And let threads take turns quickly, for those that do not.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Final

import torch

from mxfp4_core.errors import ConfigError

THREAD_BLOCKS: Final = 1 << 14  # fewer blocks than this, half a million values, are not worth a thread


@cache
def _pool() -> ThreadPoolExecutor:
    # Kept, since starting sixteen threads takes longer than quantising a layer. Several callers may share it.
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="mxfp4")


if hasattr(os, "register_at_fork"):  # a forked child has the pool but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def spread(run: Callable[[int, int], int], blocks: int, threads: int | None, each: int = 1) -> int:
    """Call ``run(start, stop)`` on ranges that cover ``blocks`` and return the sum of the results.

    Args:
        run: works on blocks ``start`` to ``stop``; must not call ``spread`` itself.
        blocks: how many there are.
        threads: how many threads to use at most; torch's number if None.
        each: how many blocks of 32 stand for one of these.

    Raises:
        ConfigError: ``threads`` below 1.
    """
    if threads is not None and threads < 1:
        raise ConfigError(
            "threads cannot be used",
            seen=str(threads),
            rule="threads is at least 1",
            fix="pass a positive number, or None for torch's number",
        )
    workers = min(threads or torch.get_num_threads(), max(1, blocks * each // THREAD_BLOCKS))
    if workers == 1:
        return run(0, blocks)
    edges = [blocks * worker // workers for worker in range(workers + 1)]
    return sum(_pool().map(run, edges[:-1], edges[1:]))


class _Turns:
    """How many bodies want quick turns, and what the interval was before the first of them."""

    lock, wanted, interval = threading.Lock(), 0, 0.0


@contextmanager
def quick_turns() -> Iterator[None]:
    """Let Python change between threads every 0.1 ms instead of every 5 ms while the body runs, in the whole process.

    For work in the background that gives the GIL up and takes it back for moments, hundreds of times: beside a busy
    thread it would wait for a whole turn each time.
    """
    with _Turns.lock:
        _Turns.wanted += 1
        if _Turns.wanted == 1:
            _Turns.interval = sys.getswitchinterval()
            sys.setswitchinterval(min(1e-4, _Turns.interval))
    try:
        yield
    finally:
        with _Turns.lock:
            _Turns.wanted -= 1
            if not _Turns.wanted:
                sys.setswitchinterval(_Turns.interval)


__all__ = ["THREAD_BLOCKS", "quick_turns", "spread"]
