"""Compile ahead of time what the installed backends compile at first use; no device is needed for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Literal

from mxfp4_core.backend.answers import No
from mxfp4_core.backend.asking import kernels_of
from mxfp4_core.backend.compiled import Kernel
from mxfp4_core.backend.protocol import Backend
from mxfp4_core.backend.registry import Plugin, installed
from mxfp4_core.backend.select import KNOWN, missing_line, unknown_name
from mxfp4_core.errors import BackendError, ConfigError, Mxfp4Error

State = Literal["cached", "compiled", "missing"]


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


@dataclass(frozen=True)
class WarmUp:
    """What became of the kernels of one backend.

    Attributes:
        backend: its name.
        folder: where the kernels are kept; empty if it compiles none.
        kernels: what became of each.
        seconds: the time for all.
        error: why it failed, None if it did not.
    """

    backend: str
    folder: str = ""
    kernels: tuple[Warmed, ...] = ()
    seconds: float = 0.0
    error: Mxfp4Error | None = None

    def count(self, state: str) -> int:
        """Return how many kernels are in a state."""
        return sum(kernel.state == state for kernel in self.kernels)

    def to_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        failed = self.error and {key: getattr(self.error, key) for key in ("what", "seen", "rule", "fix")}
        return {**asdict(self), "kernels": [asdict(kernel) for kernel in self.kernels], "error": failed}


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def warm_up(
    name: str | None = None,
    *,
    jobs: int | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[WarmUp]:
    """Compile the kernels of one backend, or of each that is installed; yield what was done, backend by backend.

    Args:
        name: only this backend.
        jobs: kernels to compile at a time; the number of processors if None.
        dry_run: compile nothing, say what is missing.
        progress: see ``compile_all``.

    Raises:
        BackendError: ``name`` is not installed, unknown or broken.
        ConfigError: ``jobs`` is below 1.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError("--jobs", seen=str(jobs), rule="at least one kernel at a time", fix="leave it out")
    plugins = installed()
    if name is not None and name not in plugins:
        if name not in KNOWN:
            raise unknown_name(name, [*plugins, *KNOWN])
        raise BackendError(
            f"backend {name!r}",
            seen="it is not installed",
            rule="only an installed backend can compile its kernels",
            fix=missing_line(name, KNOWN[name]).fix,
        )
    for plugin in plugins.values() if name is None else [plugins[name]]:
        yield _one(plugin, jobs or processors(), dry_run, progress)


def _one(plugin: Plugin, jobs: int, dry_run: bool, progress: Callable[[int, int], None]) -> WarmUp:
    start = time.perf_counter()
    loaded = plugin.load()
    if isinstance(loaded, No):
        broken = BackendError(
            f"backend {plugin.name!r}", seen=loaded.reason, rule="its package can be imported", fix=loaded.fix
        )
        return WarmUp(plugin.name, error=broken)
    folder = ""
    try:
        found = kernels_of(loaded)
        if found is None:
            return WarmUp(plugin.name)
        folder = found.folder
        if dry_run:
            rows = tuple(Warmed(one.name, "cached" if one.cached else "missing") for one in found.kernels)
        else:
            rows = compile_all(found.kernels, jobs=jobs, progress=progress)
    except Mxfp4Error as error:
        return WarmUp(plugin.name, folder, error=error)
    except Exception as error:  # one broken plug-in must not keep the others from their kernels
        return WarmUp(plugin.name, folder, error=_defect(plugin, loaded, error))
    return WarmUp(plugin.name, folder, rows, time.perf_counter() - start)


def _defect(plugin: Plugin, backend: Backend, error: Exception) -> BackendError:
    return BackendError(
        f"the kernels of the backend {backend.name!r}",
        seen=f"{type(error).__name__}: {error} ({plugin.distribution})",
        rule="a backend lists and compiles its kernels, or raises an error of mxfp4",
        fix=plugin.advice,
    )


__all__ = ["State", "WarmUp", "Warmed", "compile_all", "processors", "warm_up"]
