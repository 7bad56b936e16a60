"""Medians of CUDA-graph replays, the two ceilings of the device, and figures of peers."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

PEERS = json.loads((Path(__file__).parent / "peers.json").read_text(encoding="utf-8"))


def require_sm90() -> None:
    """Leave with a sentence where there is no SM90 GPU."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        print("skipped: this benchmark needs an NVIDIA GPU of compute capability 9.0")
        sys.exit(0)


def microseconds(run: Callable[[], object], *, flush: torch.Tensor | None = None, replays: int = 20) -> float:
    """Return the median time of one replay of a captured call.

    Args:
        run: launches on the current stream.
        flush: a tensor larger than the L2 cache, written before each replay so that the call finds a cold cache.
        replays: how many are timed.
    """
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    times = []
    for _ in range(replays):
        if flush is not None:
            flush.zero_()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return statistics.median(times)


def ceilings() -> tuple[float, float]:
    """Return copy bandwidth (bytes read plus written, GB/s) and the speed of a BF16 matmul of 8192^3 (TFLOP/s)."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = 2 * source.numel() / _eager(lambda: target.copy_(source)) / 1e3
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return copy, 2 * 8192**3 / microseconds(lambda: a @ b) / 1e6


def _eager(run: Callable[[], object]) -> float:
    """Time without a graph: a captured copy may go to a copy engine, which is slower than the multiprocessors."""
    times = []
    for _ in range(25):
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


def best_peer(row: Mapping[str, float | None]) -> float:
    """Return the fastest W4A16 peer of a row of ``PEERS``."""
    return min(value for name, value in row.items() if name != "bf16" and value is not None)


def geometric_mean(values: Iterable[float]) -> float:
    """Return exp of the mean of logarithms."""
    return math.exp(statistics.fmean(math.log(value) for value in values))
