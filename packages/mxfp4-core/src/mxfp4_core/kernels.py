"""What a backend says about its kernels: which are compiled on this machine, and which runs for how many tokens.

Both are optional. ``Backend.kernels`` is for backends that compile at first use: `mxfp4 warmup` compiles ahead, for
example while an image of a container is built. ``Backend.choices`` is for backends with more than one kernel for an op:
`mxfp4 doctor` prints the table, so that nobody has to guess what runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mxfp4_core.backend import Backend
    from mxfp4_core.problem import Problem

State = Literal["cached", "compiled", "missing"]


@dataclass(frozen=True)
class Kernel:
    """One piece of machine code that is compiled on this machine and kept.

    Attributes:
        name: for people, unique among the kernels of its backend.
        cached: it is kept already, and will be found by the call that needs it.
        compile: compiles and keeps it. It is called from several threads at a time for different kernels, needs no
            device, prints nothing, and raises an `Mxfp4Error` where it cannot compile or cannot keep the result.
    """

    name: str
    cached: bool
    compile: Callable[[], object] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Kernels:
    """Every kernel that the calls of a backend can need, except those that no ordinary model needs.

    Attributes:
        folder: where they are kept, for people.
        kernels: in the order in which they are compiled; long ones first keeps all processors busy to the end.
    """

    folder: str
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class Warmed:
    """What became of one kernel.

    Attributes:
        name: ``Kernel.name``.
        state: cached (it was there), compiled (it is there now) or missing (it was only asked for).
        seconds: the time to compile it.
    """

    name: str
    state: State
    seconds: float = 0.0


@dataclass(frozen=True)
class Choice:
    """One row of a table of choices: the kernel that serves a problem from ``first`` to ``last`` tokens.

    Attributes:
        first: smallest m.
        last: largest m; of the last row, how far the table looks.
        kernel: its name.
        settings: what else was chosen, such as the size of a tile. Rows may have different ones.
    """

    first: int
    last: int
    kernel: str
    settings: Mapping[str, int | str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "first": self.first,
            "last": self.last,
            "kernel": self.kernel,
            "settings": dict(self.settings),
        }


def kernels_of(backend: Backend) -> Kernels | None:
    """Return what a backend compiles on this machine, None if nothing, or if it was written without this member.

    Raises:
        BackendError: the compiler is missing.
    """
    member = getattr(backend, "kernels", None)
    found: Kernels | None = None if member is None else member()
    return found


def choices_of(backend: Backend, problem: Problem) -> tuple[Choice, ...]:
    """Return the table of choices of a backend for a problem that it accepts; empty if it has none."""
    member = getattr(backend, "choices", None)
    return () if member is None else tuple(member(problem))


def tabulate(choose: Callable[[int], tuple[str, Mapping[str, int | str]]], most: int) -> tuple[Choice, ...]:
    """Build a table of choices by asking the function that chooses, so that the table cannot differ from it.

    Args:
        choose: from m to the kernel's name and settings.
        most: it is asked for 1 to ``most`` tokens.
    """
    rows: list[Choice] = []
    for m in range(1, most + 1):
        kernel, settings = choose(m)
        if rows and (rows[-1].kernel, rows[-1].settings) == (kernel, settings):
            rows[-1] = replace(rows[-1], last=m)
        else:
            rows.append(Choice(m, m, kernel, settings))
    return tuple(rows)


def compile_all(
    kernels: Sequence[Kernel], *, jobs: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Warmed, ...]:
    """Compile the kernels that are not cached, ``jobs`` at a time.

    Args:
        kernels: from ``Backend.kernels``.
        jobs: threads, at least 1.
        progress: called with the number of kernels that are done and the number that there are to compile.

    Returns:
        What became of each, in the order of ``kernels``.

    Raises:
        Mxfp4Error: the first failure; kernels that were not begun are left out.
    """
    todo = [kernel for kernel in kernels if not kernel.cached]
    lock, done = threading.Lock(), 0

    def run(kernel: Kernel) -> Warmed:
        nonlocal done
        start = time.perf_counter()
        kernel.compile()
        seconds = time.perf_counter() - start
        with lock:
            done += 1
            progress(done, len(todo))
        return Warmed(kernel.name, "compiled", seconds)

    if todo:
        progress(0, len(todo))
    with ThreadPoolExecutor(jobs) as pool:
        futures = {kernel.name: pool.submit(run, kernel) for kernel in todo}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for future in futures.values():
        if not future.cancelled() and (error := future.exception()) is not None:
            raise error
    return tuple(
        futures[kernel.name].result() if kernel.name in futures else Warmed(kernel.name, "cached")
        for kernel in kernels
    )


__all__ = [
    "Choice",
    "Kernel",
    "Kernels",
    "State",
    "Warmed",
    "choices_of",
    "compile_all",
    "kernels_of",
    "tabulate",
]
