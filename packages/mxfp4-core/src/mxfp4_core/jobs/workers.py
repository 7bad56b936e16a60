"""Processes of this machine that run tasks: as many as asked for, gone when the work is done or the parent is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait

from mxfp4_core.checkpoint.tasks import Executor
from mxfp4_core.errors import ConfigError

MOST = 1024
"""More than any machine has use for."""


@contextmanager
def processes(count: int) -> Iterator[Executor | None]:
    """Start worker processes for the ``executor=`` of a job; they share the processors evenly.

    Workers are new interpreters (``spawn``): a script that uses them guards its main part with
    ``if __name__ == "__main__"``. Each holds as much memory as a job without workers.

    Args:
        count: how many; with 1 there is no other process, and what is yielded is None.

    Raises:
        ConfigError: ``count`` below 1.
    """
    if not 1 <= count <= MOST:
        raise ConfigError(
            "the work cannot be spread over processes",
            seen=f"jobs = {count}",
            rule=f"jobs is at least 1, and at most {MOST}",
            fix="pass 1 to work in this process alone, or the number of processes",
        )
    if count == 1:
        yield None
        return
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, initializer=_begin, initargs=(threads,)) as executor:
        yield executor


def _begin(threads: int) -> None:
    """Set up a worker."""
    # An interruption reaches the whole group: the parent hears it and ends the tasks in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True, name="mxfp4-parent").start()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when a task imports it
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def _leave_with_parent() -> None:
    """End this process when its parent dies, which the executor's own loop would not notice."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


__all__ = ["processes"]
