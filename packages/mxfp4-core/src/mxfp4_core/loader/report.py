"""The summary of a load, as one line for people and as data for programs.

builder = LoadReportBuilder(profile="even/even", backend="reference")
with builder.timing("reading"):
weight = checkpoint.load(name)
builder.quantised(name, kind="Linear", bytes_before=weight.nbytes, bytes_after=packed.nbytes)
builder.kept("lm_head", kind="Linear", reason="default: output head", nbytes=1024)
print(builder.build().line())
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from mxfp4_core._text import size_text
from mxfp4_core.errors import FormatError
from mxfp4_core.loader.memory import MemoryMeter, MemoryUse

T = TypeVar("T")
_LOG = logging.getLogger("mxfp4_core.loader")
PHASES = ("reading", "quantising", "preparing")
_SAMPLE_SECONDS = 0.01


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one kind that met the same fate.

    Args:
        kind: type of the layers, as their owner calls it (``"Linear"``, ``"experts"``).
        reason: why they are what they are; empty for layers that were quantised by default.
        count: number of layers.
        bytes_before: bytes of their weights in the checkpoint's precision.
        bytes_after: bytes that they take now.
    """

    kind: str
    reason: str
    count: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class PhaseTime:
    """Seconds of one phase. With one thread both numbers are the same.

    Args:
        wall: seconds during which at least one thread was in the phase.
        threads: seconds summed over the threads, so it may exceed the time on the clock.
    """

    wall: float
    threads: float


@dataclass(frozen=True)
class LoadReport:
    """What a load did: layers by kind and reason, bytes, memory, seconds, backend, profile and quantizer.

    Phases may overlap (one thread reads while another quantises), so `phases` need not add up to `seconds`.
    """

    quantised: tuple[LayerGroup, ...]
    kept: tuple[LayerGroup, ...]
    memory: tuple[MemoryUse, ...]
    phases: Mapping[str, PhaseTime]
    seconds: float
    backend: str
    profile: str
    quantizer: str = ""

    @property
    def bytes_before(self) -> int:
        """Bytes of all reported weights as the checkpoint has them."""
        return sum(group.bytes_before for group in (*self.quantised, *self.kept))

    @property
    def bytes_after(self) -> int:
        """Bytes of all reported weights as they are now."""
        return sum(group.bytes_after for group in (*self.quantised, *self.kept))

    def line(self) -> str:
        """Return the summary as one line of text, without a newline."""
        parts = [f"quantised {_layers(self.quantised)}", f"kept {_layers(self.kept)} in high precision"]
        parts.append(f"weights {size_text(self.bytes_before, 2)} -> {size_text(self.bytes_after, 2)}")
        for use in self.memory:
            peak = f"peak {size_text(use.peak, 2)} ({use.measure})"
            mapped = (
                f" with {size_text(use.mapped, 2)} of mapped files, which can be reclaimed"
                if use.mapped
                else ""
            )
            parts.append(
                f"{use.device} memory {size_text(use.before, 2)}, {peak}, {size_text(use.after, 2)} after{mapped}"
            )
        times = ", ".join(f"{name} {_phase(spent)}" for name, spent in self.phases.items())
        parts.append(f"{self.seconds:.2f} s: {times}")
        by = f" by {self.quantizer}" if self.quantizer else ""
        parts.append(f"backend {self.backend or 'not chosen'}, profile {self.profile or 'unknown'}{by}")
        return "mxfp4: " + "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data, with the totals of bytes added."""
        data = asdict(self)
        lists = {key: list(data[key]) for key in ("quantised", "kept", "memory")}
        return {**data, **lists, "bytes_before": self.bytes_before, "bytes_after": self.bytes_after}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LoadReport:
        """Rebuild a report from the data of `to_dict`.

        Raises:
            FormatError: a field is missing or has another shape.
        """
        try:
            return cls(
                quantised=tuple(LayerGroup(**group) for group in data["quantised"]),
                kept=tuple(LayerGroup(**group) for group in data["kept"]),
                memory=tuple(MemoryUse(**use) for use in data["memory"]),
                phases={name: PhaseTime(**spent) for name, spent in data["phases"].items()},
                seconds=data["seconds"],
                backend=data["backend"],
                profile=data["profile"],
                quantizer=data["quantizer"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                "LoadReport.from_dict",
                seen=f"{type(error).__name__}: {error}",
                rule="the data must be what LoadReport.to_dict returned",
                fix="write the report again with this version of mxfp4-core",
            ) from error


@dataclass
class _Clock:
    """Seconds of one phase while threads go in and out of it."""

    running: int = 0
    entered: float = 0.0
    wall: float = 0.0
    threads: float = 0.0


@dataclass
class LoadReportBuilder:
    """Collect a `LoadReport` while a load runs; every method may be called from any thread.

    Args:
        backend: name of the backend that will compute, empty while it is not chosen.
        profile: name of the resolved profile (or of several, comma separated).
        devices: what to measure memory on, ``"cpu"`` and torch devices such as ``"cuda:0"``.
        quantizer: who makes the bytes: ``mxfp4_core``, or the backend whose kernels do (or several).
    """

    backend: str = ""
    profile: str = ""
    devices: Sequence[str] = ("cpu",)
    quantizer: str = ""
    _quantised: dict[str, LayerGroup] = field(default_factory=dict[str, LayerGroup], init=False, repr=False)
    _kept: dict[str, LayerGroup] = field(default_factory=dict[str, LayerGroup], init=False, repr=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._start = self._sampled = time.perf_counter()
        self._clocks = {phase: _Clock() for phase in PHASES}
        self._meters = {device: MemoryMeter(device) for device in self.devices}

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Count the body's time for `phase`: one of `PHASES`, which are always reported, or another name."""
        with self._lock:
            # The clock is read under the lock: times must be in the order in which threads come and go.
            began = time.perf_counter()
            clock = self._clocks.setdefault(phase, _Clock())
            clock.running += 1
            if clock.running == 1:
                clock.entered = began
        try:
            yield
        finally:
            with self._lock:
                now = time.perf_counter()
                clock.running -= 1
                clock.threads += now - began
                if clock.running == 0:
                    clock.wall += now - clock.entered

    def timed(self, items: Iterable[T], phase: str = "reading") -> Iterator[T]:
        """Yield from `items`, counting the time that each next item takes for `phase`."""
        iterator = iter(items)
        while True:
            with self.timing(phase):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def quantised(
        self, name: str, *, kind: str, bytes_before: int, bytes_after: int, reason: str = ""
    ) -> None:
        """Count layer `name` as quantised. The last call for a name, here or in `kept`, counts."""
        with self._lock:
            self._kept.pop(name, None)
            self._quantised[name] = LayerGroup(kind, reason, 1, bytes_before, bytes_after)

    def kept(self, name: str, *, kind: str, reason: str, nbytes: int) -> None:
        """Count layer `name` as left in high precision, and why. The last call for a name counts."""
        with self._lock:
            self._quantised.pop(name, None)
            self._kept[name] = LayerGroup(kind, reason, 1, nbytes, nbytes)

    @property
    def watched(self) -> tuple[str, ...]:
        """The devices that are measured."""
        return tuple(self._meters)

    def watch(self, device: str) -> None:
        """Measure `device` too, from now on."""
        with self._lock:
            if device not in self._meters:
                self._meters[device] = MemoryMeter(device)

    def sample(self) -> None:
        """Look at the memory now, unless that was done a moment ago: a peak that no mark shows must be seen here."""
        now = time.perf_counter()
        if now - self._sampled < _SAMPLE_SECONDS:
            return
        self._sampled = now
        for meter in list(self._meters.values()):
            meter.sample()

    def say(self) -> LoadReport:
        """Return the report up to now, and log its line."""
        report = self.build()
        _LOG.info("%s", report.line())
        return report

    def build(self) -> LoadReport:
        """Return the report up to now, without phases that are still open. It may be built again later."""
        uses = [meter.read() for meter in list(self._meters.values())]
        with self._lock:
            return LoadReport(
                quantised=_group(self._quantised.values()),
                kept=_group(self._kept.values()),
                memory=tuple(use for use in uses if use is not None),
                phases={name: PhaseTime(clock.wall, clock.threads) for name, clock in self._clocks.items()},
                seconds=time.perf_counter() - self._start,
                backend=self.backend,
                profile=self.profile,
                quantizer=self.quantizer,
            )


def _group(layers: Iterable[LayerGroup]) -> tuple[LayerGroup, ...]:
    sums: dict[tuple[str, str], list[int]] = {}
    for layer in layers:
        total = sums.setdefault((layer.kind, layer.reason), [0, 0, 0])
        for index, value in enumerate((layer.count, layer.bytes_before, layer.bytes_after)):
            total[index] += value
    return tuple(LayerGroup(kind, reason, *total) for (kind, reason), total in sums.items())


def _layers(groups: tuple[LayerGroup, ...], most: int = 4) -> str:
    total = sum(group.count for group in groups)
    if not total:
        return "0 layers"
    largest = sorted(groups, key=lambda group: -group.count)
    each = [f"{one.count} {one.kind}" + (f": {one.reason}" if one.reason else "") for one in largest[:most]]
    rest = sum(group.count for group in largest[most:])
    each += [f"{rest} more"] if rest else []
    return f"{total} layer{'s' if total > 1 else ''} ({', '.join(each)})"


def _phase(spent: PhaseTime) -> str:
    # Rounded to what is printed: a difference nobody can see is no sign of threads.
    several = f"{spent.threads:.2f}" != f"{spent.wall:.2f}"
    return f"{spent.wall:.2f}" + (f" ({spent.threads:.2f} over threads)" if several else "")


__all__ = ["PHASES", "LayerGroup", "LoadReport", "LoadReportBuilder", "MemoryUse", "PhaseTime"]
