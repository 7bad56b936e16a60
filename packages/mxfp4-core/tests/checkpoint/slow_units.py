"""Units that wait in the middle of their tensor, for tests that stop a run there; workers import this file."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mxfp4_core.checkpoint.assemble import Content, Written, write_checkpoint
from mxfp4_core.checkpoint.manifest import Manifest
from mxfp4_core.checkpoint.tasks import Progress
from mxfp4_core.checkpoint.writer import TensorSpec
from mxfp4_core.errors import FormatError
from mxfp4_core.jobs.workers import processes

SIZE = 64
DEADLINE = 60.0


@dataclass(frozen=True)
class SlowUnit:
    """Write half, wait for a file ``go``, write the rest; ``bad`` raises then, ``dead`` ends the process."""

    name: str
    signs: Path
    kind: str = "good"

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(self.name, "U8", (SIZE,)),)

    @property
    def source_bytes(self) -> int:
        return SIZE

    def stream(self, progress: Progress) -> Iterator[tuple[str, memoryview]]:
        half = memoryview(self.name.encode().ljust(SIZE // 2, b"."))
        yield self.name, half
        progress(SIZE // 2)
        (self.signs / f"{self.name}-{os.getpid()}").touch()
        deadline = time.monotonic() + DEADLINE
        while not (self.signs / "go").exists():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.01)
            progress(0)
        if self.kind == "dead":
            os._exit(9)
        if self.kind == "bad":
            raise FormatError(f"{self.name} is bad", seen="bad", rule="good", fix="mend it")
        yield self.name, half
        progress(SIZE // 2)


def units(signs: Path, kinds: dict[str, str]) -> list[SlowUnit]:
    return [SlowUnit(name, signs, kind) for name, kind in kinds.items()]


def content(signs: Path, kinds: dict[str, str]) -> Content:
    """Return a checkpoint whose every unit is a shard of its own."""
    return Content(units(signs, kinds), {"config.json": b"{}"}, {}, Manifest("none", {}, "c", "", "s"))


def write(folder: Path, signs: Path, kinds: dict[str, str], jobs: int) -> Written:
    with processes(jobs) as executor:
        return write_checkpoint(folder, content(signs, kinds), max_shard_bytes=1, executor=executor)


if __name__ == "__main__":
    # A shell starts a job in the background without it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    target, signs, names, jobs = sys.argv[1:]
    write(Path(target), Path(signs), dict.fromkeys(names.split(","), "good"), int(jobs))
