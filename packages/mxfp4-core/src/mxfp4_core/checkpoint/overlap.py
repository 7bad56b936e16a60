"""Do two things at once: one thread makes what another one takes, a piece ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")

_LOOK_SECONDS = 0.1
"""How often a thread that nobody listens to any more looks for that."""


class _End:
    """The last thing that a thread hands over: its error, if it had one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items of an iterator that runs in a thread of its own; one of them waits, and one is being made.

    For work that gives up Python's lock: reading, writing, hashing, compiled kernels. Items stay valid while the next
    ones are made. What the iterator raises is raised here; when the consumer ends early, the thread ends, too.
    """
    waiting: queue.Queue[T | _End] = queue.Queue(1)
    left = threading.Event()

    def hand_over(item: T | _End) -> bool:
        while not left.is_set():
            try:
                waiting.put(item, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not hand_over(item):
                    break
        except BaseException as raised:  # for the consumer, whatever it is
            error = raised
        hand_over(_End(error))

    thread = threading.Thread(target=make, daemon=True, name="mxfp4-ahead")
    thread.start()
    try:
        while not isinstance(item := waiting.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        left.set()
        thread.join()


__all__ = ["ahead"]
