"""Processes of this machine that run tasks: as many as asked for, gone when the work is done or the parent is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar, cast

from mxfp4_core.checkpoint.tasks import Executor
from mxfp4_core.errors import ConfigError

R = TypeVar("R")

MOST = 1024
"""More than any machine has use for."""


@contextmanager
def processes(count: int, *, retries: int = 0) -> Iterator[Executor | None]:
    """Start worker processes for the ``executor=`` of a job; they share the processors evenly.

    Workers are new interpreters (``spawn``): a script that uses them guards its main part with
    ``if __name__ == "__main__"``. Each holds as much memory as a job without workers.

    Args:
        count: how many; with 1 there is no other process, and what is yielded is None.
        retries: how often new processes take over what was not finished when one of them was killed.

    Raises:
        ConfigError: ``count`` below 1, or ``retries`` below 0.
    """
    if retries < 0:
        raise ConfigError(
            "the work cannot be spread over processes",
            seen=f"retries = {retries}",
            rule="retries are 0 or more",
            fix="pass 0 to end when a process was killed",
        )
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
    pools = _Pools(
        lambda: ProcessPoolExecutor(count, context, initializer=_begin, initargs=(threads,)), retries
    )
    try:
        yield pools
    finally:
        pools.shutdown()


class _Pools:
    """One pool of processes after another: a process that was killed takes its pool along."""

    def __init__(self, make: Callable[[], ProcessPoolExecutor], retries: int) -> None:
        self._make, self._left = make, retries
        self._pools = [make()]
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., R], /, *args: Any) -> Future[R]:
        """Call ``fn(*args)`` in a process."""
        call = _Call(self, fn, args)
        call.start(self._pools[-1])
        return cast("Future[R]", call)

    def after(self, broken: ProcessPoolExecutor) -> ProcessPoolExecutor | None:
        """Return the pool that takes over; None where there are no retries left."""
        with self._lock:
            if self._pools[-1] is broken:
                if not self._left:
                    return None
                self._left -= 1
                self._pools.append(self._make())
            return self._pools[-1]

    def shutdown(self) -> None:
        """Wait until all processes have ended."""
        for pool in self._pools:
            pool.shutdown()


class _Call(Future[Any]):
    """A call that is made in another pool where its own broke."""

    def __init__(self, pools: _Pools, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        super().__init__()
        self._pools, self._fn, self._args = pools, fn, args
        self._given_up = False

    def start(self, pool: ProcessPoolExecutor) -> None:
        """Make the call, in this pool or in the one that took over from it.

        Raises:
            BrokenExecutor: it broke, and there are no retries left.
        """
        while True:
            try:
                self._inner = pool.submit(self._fn, *self._args)
                break
            except BrokenExecutor:
                other = self._pools.after(pool)
                if other is None:
                    raise
                pool = other
        used = pool
        self._inner.add_done_callback(lambda inner: self._ended(used, inner))

    def cancel(self) -> bool:
        """Take the call back where it has not begun."""
        self._given_up = True
        return self._inner.cancel()

    def _ended(self, pool: ProcessPoolExecutor, inner: Future[Any]) -> None:
        if inner.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        error = inner.exception()
        if isinstance(error, BrokenExecutor) and not self._given_up and (other := self._pools.after(pool)):
            try:
                self.start(other)
            except BrokenExecutor as again:
                self.set_exception(again)
        elif error is not None:
            self.set_exception(error)
        else:
            self.set_result(inner.result())


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
