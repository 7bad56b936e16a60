"""Feed a reader with mutated inputs: each in time, within a limit of memory, and with no error but ours."""

from __future__ import annotations

import faulthandler
import random
import resource
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from types import FrameType

from fuzzing.readers import OURS, Reader

SECONDS = 5.0
"""More than any input may take."""

MEMORY = 1 << 30
"""Bytes of address space that a reader may take beyond what the process has when it begins."""

_SHOWN = 5


class Hang(BaseException):
    """An input took too long."""


@dataclass
class Outcome:
    """What became of the inputs of one reader.

    Attributes:
        name: the reader.
        inputs: how many.
        accepted: how many were read.
        refused: our errors, by class.
        failures: seed, number and end of the traceback of what must not happen; the first few.
        failed: how many there were.
        slowest: seconds that the slowest input took.
        seconds: for all.
        processor: seconds of the processor for all, which other work on the machine does not change.
        grown: bytes by which the process grew at most.
    """

    name: str
    inputs: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    failed: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    processor: float = 0.0
    grown: int = 0

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {**self.__dict__, "refused": dict(self.refused)}


def feed(name: str, reader: Reader, *, seed: int, first: int, count: int, seconds: float) -> Outcome:
    """Feed a reader until either limit is reached.

    Args:
        name: the reader's.
        reader: what is fed.
        seed: of the random numbers; with the number of an input it makes that input.
        first: number of the first input.
        count: most inputs.
        seconds: most time.
    """
    outcome, rng = Outcome(name), random.Random()
    limit = _limited_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    usual = signal.signal(signal.SIGALRM, _hang)
    started, busy = time.perf_counter(), time.process_time()
    try:
        for number in range(first, first + count):
            if not number & 0xFF:
                if time.perf_counter() - started > seconds:
                    break
                faulthandler.dump_traceback_later(60, exit=True)  # for what no signal ends
            rng.seed(seed << 40 | number)
            origin, data = reader.make(rng)
            _one(reader, origin, data, outcome, f"--seed {seed} --reader {name} --first {number} --count 1")
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, usual)
        resource.setrlimit(resource.RLIMIT_AS, limit)
    outcome.seconds, outcome.processor = time.perf_counter() - started, time.process_time() - busy
    outcome.grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    return outcome


def _one(reader: Reader, origin: int, data: bytes, outcome: Outcome, where: str) -> None:
    started = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        reader.read(origin, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        outcome.accepted += 1
    except OURS as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        str(error).encode()  # a message can be printed
        outcome.refused[type(error).__name__] += 1
    except (Exception, Hang) as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        outcome.failed += 1
        if len(outcome.failures) < _SHOWN:
            outcome.failures.append(f"{where}\n{''.join(traceback.format_exception(error)[-4:])}")
    outcome.inputs += 1
    outcome.slowest = max(outcome.slowest, time.perf_counter() - started)


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {SECONDS} s")


def _limited_memory() -> tuple[int, int]:
    """Limit the address space, and return the limit that was there."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    return before


__all__ = ["MEMORY", "SECONDS", "Outcome", "feed"]
