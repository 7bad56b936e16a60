"""Run independent tasks one after the other, or by an executor; when one fails, all others stop.

A task works on paths: it can be pickled, needs nothing of the other tasks, gives the same result whoever runs it, and
leaves its output complete or absent. So it may run in any process that sees the same files.

A worker tells through a `Channel` how far it is, and hears there that the run has ended. The channel of an executor
that has none of its own is a folder of small files: it works for all processes of a machine, and ends a run within one
piece of work.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mxfp4_core.errors import OutputError

Progress = Callable[[int], None]
"""Called with the number of source bytes that have been dealt with since the last call."""

POLL_SECONDS = 0.2
"""How often the progress of workers is looked at."""

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Task(Protocol[R_co]):
    """A piece of work on paths."""

    @property
    def source_bytes(self) -> int:
        """Bytes that it reads."""
        ...

    def run(self, progress: Progress) -> R_co:
        """Do the work and return the facts about it; what ``progress`` raises ends it and leaves nothing behind."""
        ...


class Executor(Protocol):
    """Whatever has ``submit`` as the executors of `concurrent.futures` have it, and returns their futures."""

    def submit(self, fn: Callable[..., R], /, *args: Any) -> Future[R]:
        """Call ``fn(*args)`` somewhere."""
        ...


class Stopped(Exception):
    """Ends a task because another one failed; `run_tasks` lets no caller see it."""


class Channel(Protocol):
    """What workers and a run tell each other; it is pickled into every task."""

    def telling(self, number: int) -> AbstractContextManager[Progress]:
        """Return, in a worker, what is called with the bytes that task ``number`` has done so far.

        The call raises `Stopped` where the run has ended.
        """
        ...

    def heard(self) -> Mapping[int, int]:
        """Return, in the run, the bytes that tasks have done, by their number; what is not known is not there."""
        ...

    def stop(self) -> None:
        """Tell all workers that the run has ended."""
        ...

    def close(self) -> None:
        """Remove it, when no task runs any more."""
        ...


class ConnectedExecutor(Executor, Protocol):
    """An executor whose workers are reached in a way of its own."""

    def channel(self) -> Channel:
        """Return a new channel, for one run."""
        ...


class _Files:
    """The channel of processes that share a folder: a counter for each task, and the file ``stop``."""

    def __init__(self) -> None:
        self.room = Path(tempfile.mkdtemp(prefix="mxfp4-tasks-"))

    @contextmanager
    def telling(self, number: int) -> Iterator[Progress]:
        counter: int | None
        try:
            counter = os.open(self.room / str(number), os.O_WRONLY | os.O_CREAT, 0o600)
        except OSError:  # another machine: the task does its work, and nobody sees how far it is
            counter = None

        def tell(done: int) -> None:
            if (self.room / "stop").exists():
                raise Stopped
            if counter is not None:
                os.pwrite(counter, done.to_bytes(8, "little"), 0)

        try:
            yield tell
        finally:
            if counter is not None:
                os.close(counter)

    def heard(self) -> Mapping[int, int]:
        found = {}
        for path in self.room.iterdir():
            if path.name != "stop":
                found[int(path.name)] = int.from_bytes(path.read_bytes(), "little")
        return found

    def stop(self) -> None:
        (self.room / "stop").touch()

    def close(self) -> None:
        shutil.rmtree(self.room, ignore_errors=True)


def run_tasks(
    tasks: Mapping[str, Task[R]],
    finished: Callable[[str, R], None],
    *,
    executor: Executor | None = None,
    progress: Progress = lambda nbytes: None,
) -> None:
    """Run tasks in order, or all of them by an executor.

    Args:
        tasks: the tasks by name.
        finished: called here with the name and the facts of each task once it is done; with an executor in the order
            in which they end.
        executor: who runs them; this thread if None. Where it has a method ``channel``, workers are heard through that.
        progress: called here with the number of source bytes since the last call.

    Raises:
        OutputError: a worker ended in the middle of its task.
        Exception: what a task raised; of several, that of the first in order. No task runs any more then.
    """
    if executor is None:
        for name, task in tasks.items():
            finished(name, task.run(progress))
        return
    own: Callable[[], Channel] | None = getattr(executor, "channel", None)
    channel = own() if own is not None else _Files()
    try:
        _Run(tasks, finished, progress, channel).by(executor)
    finally:
        channel.close()


class _Run:
    """One call of `run_tasks` with an executor."""

    def __init__(
        self,
        tasks: Mapping[str, Task[Any]],
        finished: Callable[[str, Any], None],
        progress: Progress,
        channel: Channel,
    ) -> None:
        self._tasks, self._finished, self._progress, self._channel = tasks, finished, progress, channel
        self._counted = dict.fromkeys(tasks, 0)
        self._futures: dict[str, Future[Any]] = {}
        self._open = set(tasks)

    def by(self, executor: Executor) -> None:
        """Run all tasks; leave none running, however it ends."""
        try:
            for number, (name, task) in enumerate(self._tasks.items()):
                self._futures[name] = executor.submit(_work, task, self._channel, number)
            while self._open:
                waiting = [future for name, future in self._futures.items() if name in self._open]
                wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                self._look()
                self._take([name for name in self._futures if self._futures[name].done()])
        except BaseException as error:
            failures = self._stop()
            self._take([name for name, future in self._futures.items() if _succeeded(future)])
            broken = [each for each in (error, *failures) if isinstance(each, BrokenExecutor)]
            if broken:
                raise _died(broken[0]) from error
            if error in failures and error is not failures[0]:
                raise failures[0] from None
            raise

    def _take(self, done: list[str]) -> None:
        for name in done:
            if name in self._open:
                facts = self._futures[name].result()
                self._open.remove(name)
                self._finished(name, facts)
                self._report(name, self._tasks[name].source_bytes)

    def _look(self) -> None:
        """Report what the workers say."""
        heard = self._channel.heard()
        for number, name in enumerate(self._tasks):
            if name in self._open and number in heard:
                self._report(name, heard[number])

    def _report(self, name: str, done: int) -> None:
        done = min(done, self._tasks[name].source_bytes)
        if done > self._counted[name]:
            self._progress(done - self._counted[name])
            self._counted[name] = done

    def _stop(self) -> list[BaseException]:
        """End every task and return why tasks failed by themselves, in the order of the tasks."""
        self._channel.stop()
        for future in self._futures.values():
            future.cancel()
        wait(self._futures.values())
        errors = [future.exception() for future in self._futures.values() if not future.cancelled()]
        return [error for error in errors if error is not None and not isinstance(error, Stopped)]


def _succeeded(future: Future[Any]) -> bool:
    return not future.cancelled() and future.exception() is None


def _work(task: Task[R], channel: Channel, number: int) -> R:
    """Run a task in a worker, and tell how far it is."""
    done = 0
    with channel.telling(number) as tell:

        def progress(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            tell(done)

        progress(0)
        return task.run(progress)


def _died(error: BaseException) -> OutputError:
    return OutputError(
        "the work was not finished",
        seen=f"a worker process ended in the middle of its task: {error}",
        rule="each task is done by one process, which lives until the task is done",
        fix="often the memory was used up: run the same command again with fewer --jobs, or more memory for each; "
        "finished files are kept",
    )


__all__ = ["Channel", "ConnectedExecutor", "Executor", "Progress", "Stopped", "Task", "run_tasks"]
