"""Medians of CUDA-graph replays, and the two ceilings of the device."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

COLD_BYTES = 256 << 20  # more than five times the L2 cache of an H200
_LONG = 2000.0  # microseconds from which fewer replays do, after a while of the same
_SETTLED = 0.3  # seconds of that


def has_sm90() -> bool:
    """Say whether the current device is an NVIDIA GPU of compute capability 9.0."""
    cuda = torch.cuda.is_available() and torch.version.hip is None
    return cuda and torch.cuda.get_device_capability() == (9, 0)


def require_sm90() -> None:
    """Leave with a sentence where there is no SM90 GPU."""
    if not has_sm90():
        print("skipped: this benchmark needs an NVIDIA GPU of compute capability 9.0")
        sys.exit(0)


def microseconds(run: Callable[[], object], *, flush: torch.Tensor | None = None, replays: int = 20) -> float:
    """Return the median time of one replay of a captured call.

    Args:
        run: launches on the current stream.
        flush: a tensor larger than the L2 cache, read before each replay, so that the call finds a cache full of
            clean lines that are not its own; without it the cache is warm. Either way the device is busy while the
            host launches the replay, so that the time of a launch by the host is not counted.
        replays: how many are timed. Where one takes more than 2 ms, seven, after 0.3 seconds of the same: such calls
            bring the device to its limit of power, where it lowers its clocks, and not at once.
    """
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    graph = _capture(run)
    one = min(_replay(graph, flush) for _ in range(3))
    begin = time.monotonic()
    while one >= _LONG and time.monotonic() - begin < _SETTLED:
        _replay(graph, flush)
    count = replays if one < _LONG else min(replays, 7)
    return statistics.median(_replay(graph, flush) for _ in range(count))


def _capture(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Capture without the garbage collection of ``torch.cuda.graph``, which costs more than what is measured."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            run()
        finally:
            graph.capture_end()
    torch.cuda.synchronize()
    return graph


def _replay(graph: torch.cuda.CUDAGraph, flush: torch.Tensor | None) -> float:
    if flush is None:
        torch.cuda._sleep(100_000)
    else:
        torch.sum(flush)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) * 1e3


def flush_buffer() -> torch.Tensor:
    """Return what ``microseconds`` reads to clear the L2 cache."""
    return torch.zeros(COLD_BYTES // 4, dtype=torch.float32, device="cuda")


def ceilings() -> tuple[float, float]:
    """Return copy bandwidth (bytes read plus written, GB/s) and the speed of a BF16 matmul of 8192^3 (TFLOP/s)."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = 2 * source.numel() / eager(lambda: target.copy_(source)) / 1e3
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return copy, 2 * 8192**3 / microseconds(lambda: a @ b) / 1e6


def eager(run: Callable[[], object], replays: int = 25) -> float:
    """Return the median microseconds of a call without a graph, the first five left out.

    For copies, which in a graph may go to a copy engine that is slower than the multiprocessors, and for calls that ask
    the device for sizes.
    """
    times = []
    for _ in range(replays):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return statistics.median(times[5:])


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of the truth."""
    return float((got.double() - want.double()).norm() / want.double().norm())
