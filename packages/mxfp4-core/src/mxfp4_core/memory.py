"""How much memory a load takes: before it, at its peak, after it.

Nothing here changes a counter of the process, because others may be reading the same counters. A high-water
mark that the system keeps (``VmHWM`` of Linux, ``max_memory_allocated`` of torch) is exact, but only speaks
about this load when the load raised it. When it did not, the peak is the largest of the samples that
`MemoryMeter.sample` took, and `MemoryUse.measure` says so.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class MemoryUse:
    """What one device held during a load, in bytes.

    Args:
        device: ``"cpu"`` for the resident memory of this process, else an accelerator (``"cuda:0"``).
        before: bytes when the load began.
        peak: most bytes at any moment of the load, as far as `measure` can see.
        after: bytes when the load ended.
        measure: where `peak` comes from: ``"VmHWM"`` and ``"max_memory_allocated"`` are exact, ``"sampled"``
            is a lower bound.
    """

    device: str
    before: int
    peak: int
    after: int
    measure: str


class MemoryMeter:
    """Measure one device from construction to `read`; safe to sample from several threads.

    Args:
        device: ``"cpu"``, or a device whose allocator torch can ask (``"cuda"``, ``"cuda:1"``).
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._lock = threading.Lock()
        self._start = self._now()
        self._highest = self._start[0] if self._start else 0

    def sample(self) -> None:
        """Note the memory in use now. Call it where a peak is likely."""
        now = self._now()
        if now is not None:
            with self._lock:
                self._highest = max(self._highest, now[0])

    def read(self) -> MemoryUse | None:
        """Return the use since construction, or None where the platform does not tell."""
        self.sample()
        now = self._now()
        if now is None:
            return None
        # An accelerator that nobody had used yet held nothing.
        (current, mark), (before, mark_before) = now, self._start or (0, 0)
        exact = mark > mark_before
        measure = ("VmHWM" if self.device == "cpu" else "max_memory_allocated") if exact else "sampled"
        return MemoryUse(self.device, before, mark if exact else self._highest, current, measure)

    def _now(self) -> tuple[int, int] | None:
        """Return (bytes in use, high-water mark)."""
        if self.device == "cpu":
            return _resident()
        # A meter for an accelerator is only built by someone who uses it through torch already.
        torch = sys.modules.get("torch")
        if torch is None or not self.device.startswith("cuda") or not torch.cuda.is_initialized():
            return None
        return torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device)


def _resident() -> tuple[int, int] | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    fields = (line.partition(":") for line in lines)
    kib = {key: int(rest.split()[0]) for key, _, rest in fields if key in _KEYS}
    return (kib["VmRSS"] << 10, kib["VmHWM"] << 10) if len(kib) == len(_KEYS) else None


_KEYS = frozenset({"VmRSS", "VmHWM"})

__all__ = ["MemoryMeter", "MemoryUse"]
