"""Kill runs, at every call that changes names or waits for the disk and at random moments, and let them go on.

Each run is a forked process, so that a kill is a kill. After it, `verify` calls nothing good that is not the whole
result, and the same command gives the bytes of a run that nobody disturbed.
"""

from __future__ import annotations

import functools
import os
import random
import select
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.material import SHARD_BYTES
from mxfp4_core.checkpoint.staging import STAGING, Destination
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import Mxfp4Error
from mxfp4_core.jobs import convert_checkpoint, quantize_checkpoint, verify_checkpoint

CALLS = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync", "ftruncate", "write")
"""Functions of ``os`` at which a run is killed."""

Job = Callable[[], object]
_FAILED, _BAD = 3, 4
_PAUSE = 0.002


@dataclass
class Kills:
    """What became of the runs of one command.

    Attributes:
        name: the command, and how it was killed.
        kills: runs that were killed.
        in_commit: those that had begun to move files into the destination.
        points: calls at which a run can be killed; 0 for random moments.
        failures: what must not happen.
        seconds: for all.
    """

    name: str
    kills: int = 0
    in_commit: int = 0
    points: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON data."""
        return dict(self.__dict__)


def jobs(made: dict[str, Path], destination: Path) -> dict[str, Job]:
    """Return the commands that are killed, each of which writes into ``destination``."""
    config = Mxfp4Config(dialect="mxfp4-core")
    source, native = made["plain"], made["mxfp4-core"]
    return {
        "quantize": lambda: quantize_checkpoint(
            source, destination, config, max_shard_bytes=SHARD_BYTES, models="none"
        ),
        "convert": lambda: convert_checkpoint(native, destination, "quark", max_shard_bytes=SHARD_BYTES),
    }


def in_child(work: Callable[[], object]) -> int:
    """Do work in a forked process and return how it ended: 0, or what tells the failure."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _leave(work)
    return _FAILED


def at_every_call(
    name: str, job: Job, destination: Path, whole: dict[str, bytes], most: int, seed: int
) -> Kills:
    """Kill a command before each call, or before a random ``most`` of them."""
    outcome, started = Kills(f"{name}, every call"), time.perf_counter()
    reading, writing = os.pipe()
    in_child(lambda: os.write(writing, str(_counted(job, -1)).encode()))
    outcome.points = int(os.read(reading, 100))
    os.close(reading), os.close(writing)
    shutil.rmtree(destination)
    points = list(range(outcome.points))
    if most < len(points):
        points = sorted(random.Random(seed).sample(points, most))
    for point in points:
        ended = in_child(functools.partial(_counted, job, point))
        if ended != -signal.SIGKILL:
            outcome.failures.append(f"point {point}: the run ended with {ended} instead of being killed")
        _after(outcome, f"point {point}", job, destination, whole)
    outcome.seconds = time.perf_counter() - started
    return outcome


def at_random(
    name: str, job: Job, destination: Path, whole: dict[str, bytes], count: int, seed: int
) -> Kills:
    """Kill a command at random moments, every second time after its commit has begun."""
    outcome, started, rng = Kills(f"{name}, random"), time.perf_counter(), random.Random(seed)
    whole_run, commit = _times(job, destination)
    tries = 0
    while outcome.kills < count and tries < 20 * count:
        tries += 1
        late = bool(tries % 2)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            _leave(functools.partial(_announced, job, writing))
        if late:
            select.select([reading], [], [], 60)
        time.sleep(rng.uniform(0, commit if late else whole_run))
        os.kill(child, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(reading), os.close(writing)
        if ended == -signal.SIGKILL:
            _after(outcome, f"--seed {seed}, try {tries}", job, destination, whole)
        else:
            shutil.rmtree(destination)
    outcome.seconds = time.perf_counter() - started
    return outcome


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, but for what a run keeps."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in found if STAGING not in path.parts
    }


def _after(outcome: Kills, where: str, job: Job, destination: Path, whole: dict[str, bytes]) -> None:
    """Check what a kill has left, run the same command again, and compare."""
    outcome.kills += 1
    left = contents(destination) if destination.exists() else {}
    outcome.in_commit += bool(left)
    if left and left != whole and in_child(lambda: _refuse_good(destination)):
        outcome.failures.append(f"{outcome.name}, {where}: verify calls half a result good, or fails")
    finished = left == whole and not (destination / STAGING).exists()
    if not finished and (ended := in_child(job)):
        outcome.failures.append(f"{outcome.name}, {where}: the same command ends with {ended}")
    elif contents(destination) != whole or (destination / STAGING).exists():
        outcome.failures.append(f"{outcome.name}, {where}: other bytes than an undisturbed run")
    shutil.rmtree(destination, ignore_errors=True)


def _refuse_good(destination: Path) -> None:
    try:
        good = verify_checkpoint(destination, models="none").ok
    except Mxfp4Error:
        return
    if good:
        os._exit(_BAD)


def _counted(job: Job, stop: int) -> int:
    """Run with a kill before the call of that number, and return how many calls there were."""
    number = 0

    def watched(do: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal number
            if number == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            number += 1
            return do(*arguments, **keywords)

        return call

    usual = {name: getattr(os, name) for name in CALLS}
    for name, do in usual.items():
        setattr(os, name, watched(do))
    try:
        job()
    finally:
        for name, do in usual.items():
            setattr(os, name, do)
    return number


def _announced(job: Job, pipe: int) -> None:
    """Run, say through a pipe when the commit begins, and make it last long enough for a kill to fall into it."""
    commit, replace = Destination.commit, os.replace

    def later(start: str, end: str) -> None:
        time.sleep(_PAUSE)
        replace(start, end)

    def announce(self: Destination) -> None:
        os.write(pipe, b"x")
        os.replace = later  # type: ignore[assignment]
        commit(self)

    Destination.commit = announce  # type: ignore[method-assign]
    job()


def _times(job: Job, destination: Path) -> tuple[float, float]:
    """Return the seconds that a run takes, and those of them for the commit."""
    reading, writing = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if not child:
        _leave(functools.partial(_announced, job, writing))
    select.select([reading], [], [], 60)
    begun = time.perf_counter()
    os.waitpid(child, 0)
    ended = time.perf_counter()
    os.close(reading), os.close(writing)
    shutil.rmtree(destination)
    return ended - started, ended - begun


def _leave(work: Callable[[], object]) -> None:
    """Do work in a child and end it, so that nothing of the parent runs twice."""
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(_FAILED)
    os._exit(0)


__all__ = ["CALLS", "Kills", "at_every_call", "at_random", "contents", "in_child", "jobs"]
