"""How much memory a load takes, and how to keep the C library from holding on to what it has freed.

Measuring resets no counter of the process, because others may be reading the same ones. A high-water mark that the
system keeps (``VmHWM`` of Linux, ``max_memory_allocated`` of torch) is exact, but only speaks about this load when
the load raised it. When it did not, the peak is the largest of the samples that `MemoryMeter.sample` took, and
`MemoryUse.measure` says so.
"""

from __future__ import annotations

import ctypes
import os
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
        mapped: bytes of `after` that are pages of files which were mapped and read meanwhile, such as a checkpoint.
            The system takes them back when it needs them.
    """

    device: str
    before: int
    peak: int
    after: int
    measure: str
    mapped: int = 0


class MemoryMeter:
    """Measure one device from construction to `read`; safe to sample from several threads.

    Args:
        device: ``"cpu"``, or a device whose allocator torch can ask (``"cuda"``, ``"cuda:1"``).
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._lock = threading.Lock()
        self._start = self._now()
        self._mapped = _mapped()
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
        mapped = max(0, _mapped() - self._mapped) if self.device == "cpu" else 0
        # Memory may have grown since the sample a moment ago, and what there is now is no less than the peak.
        peak = max(current, mark if exact else self._highest)
        return MemoryUse(self.device, before, peak, current, measure, mapped)

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
    found = _status("VmRSS", "VmHWM")
    return (found["VmRSS"], found["VmHWM"]) if len(found) == 2 else None


def _mapped() -> int:
    return _status("RssFile").get("RssFile", 0)


def _status(*keys: str) -> dict[str, int]:
    """Return those of the fields that the system has, in bytes."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {key: int(rest.split()[0]) << 10 for key, _, rest in fields if key in keys}


class Heap:
    """The C library's heap, told for a while to keep no large blocks.

    glibc raises by itself, up to 32 MiB, the size from which it takes blocks from the system and returns them when
    they are freed. Below that size they live in its heap, where a source of 16 MiB leaves a hole that the next
    one does not quite fit: a load of 1 GiB was seen to keep all of it. `hold` fixes the size at 1 MiB, `release`
    sets what glibc's own adjustment ends with. Both count, so that sessions may overlap.

    Does nothing for another C library, or where the user set the size (``MALLOC_MMAP_THRESHOLD_``).
    """

    _MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # parameter numbers of mallopt, from malloc.h

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0

    def hold(self) -> None:
        """Let every block from 1 MiB be the system's own, until `release`."""
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self._set(self._MMAP_THRESHOLD, 1 << 20)

    def release(self) -> None:
        """End one `hold`."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._set(self._MMAP_THRESHOLD, 32 << 20)
                self._set(self._TRIM_THRESHOLD, 64 << 20)

    @staticmethod
    def _set(parameter: int, value: int) -> None:
        tunables = os.environ.get("GLIBC_TUNABLES", "")
        if "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in tunables:
            return
        if os.name == "posix" and hasattr(library := ctypes.CDLL(None), "mallopt"):
            library.mallopt(parameter, value)


HEAP = Heap()

__all__ = ["HEAP", "Heap", "MemoryMeter", "MemoryUse"]
