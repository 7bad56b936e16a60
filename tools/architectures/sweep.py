"""Run trials in processes of their own: a crash, a hang or a leak of one type costs that type alone."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from architectures.catalogue import Kind
from architectures.rows import FAULT, Row


@dataclass
class _Child:
    pid: int
    kind: Kind
    pipe: int
    work: Path
    until: float
    text: bytes = b""


def sweep(kinds: Sequence[Kind], *, jobs: int, timeout: float, found: Callable[[Row], None]) -> None:
    """Try types, several at a time, and report each as it ends.

    The children are forks: torch and transformers are imported once.

    Args:
        kinds: the types.
        jobs: how many at a time.
        timeout: seconds for one type.
        found: called with each row.
    """
    import transformers

    from architectures import trial  # all of torch, before the first fork

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    waiting, running = list(reversed(kinds)), dict[int, _Child]()
    while waiting or running:
        while waiting and len(running) < jobs:
            child = _start(waiting.pop(), timeout, trial.run)
            running[child.pipe] = child
        ready, _, _ = select.select(list(running), [], [], 0.5)
        for pipe in ready:
            child = running[pipe]
            if text := os.read(pipe, 1 << 16):
                child.text += text
                continue
            found(_ended(child))
            del running[pipe]
        for child in [child for child in running.values() if time.monotonic() > child.until]:
            os.kill(child.pid, signal.SIGKILL)
            row = _ended(child)
            row.message = f"not done after {timeout:.0f} s"
            found(row)
            del running[child.pipe]


def _start(kind: Kind, timeout: float, run: Callable[[Kind, Path], Row]) -> _Child:
    work = Path(tempfile.mkdtemp(prefix="architectures-"))
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return _Child(pid, kind, reading, work, time.monotonic() + timeout)
    os.close(reading)
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # warnings of models, of which there are many
        row = run(kind, work)
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps(asdict(row)))
    finally:
        os._exit(0)


def _ended(child: _Child) -> Row:
    _, status = os.waitpid(child.pid, 0)
    os.close(child.pipe)
    shutil.rmtree(child.work, ignore_errors=True)
    try:
        return Row(**json.loads(child.text))
    except ValueError:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no result"
        return Row(
            child.kind.name, child.kind.task, status=FAULT, step="process", message=f"it ended with {how}"
        )


__all__ = ["sweep"]
