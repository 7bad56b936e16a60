"""How fast does a CPU quantise to each format, against the format ``mxfp4`` on the same weights?

Usage: python bench/quantize_formats.py [--size 4096] [--threads 1 2] [--torch]

Formats take turns, and every number is the least of at least nine runs after one that compiles: other work on the
machine only ever adds time. "Of mxfp4" is the time of ``mxfp4`` with the profile in the last column, divided by that of
the format. ``--torch`` takes the path of machines without numba.
"""

from __future__ import annotations

import argparse
import time

import torch

import mxfp4_core
from mxfp4_core.arithmetic import get_format

CASES = {
    ("mxfp4", "even/even"): "even/even",
    ("mxfp4", "msmodelslim"): "even/even",
    ("mxfp4-dual", "ascend"): "even/even",
    ("mxfp4-dual", "msmodelslim"): "msmodelslim",
    ("mxfp8", "floor/even"): "even/even",
    ("mxfp8", "rceil/even"): "even/even",
}
"""Formats with a profile, and the profile of ``mxfp4`` that they are compared with."""


def measure(dtype: torch.dtype, size: int, threads: int) -> None:
    """Print one row a format."""
    weight = (torch.randn(size, size) * 0.02).to(dtype)
    targets = {case: get_format(case[0]).empty(weight.shape) for case in CASES}
    times: dict[tuple[str, str], list[float]] = {case: [] for case in CASES}
    for turn in range(10):
        for form, profile in CASES:
            start = time.perf_counter()
            mxfp4_core.quantize_into(
                weight, targets[form, profile], format=form, profile=profile, threads=threads
            )
            if turn:
                times[form, profile].append(time.perf_counter() - start)
    best = {case: min(spent) for case, spent in times.items()}
    for case, spent in best.items():
        rate, share = weight.numel() / spent / 1e9, best["mxfp4", CASES[case]] / spent
        row = (*case, str(dtype)[6:], threads, f"{rate:.2f}", f"{share:.2f}", CASES[case])
        print("|", " | ".join(map(str, row)), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--torch", action="store_true", help="measure what runs without numba")
    options = parser.parse_args()
    if options.torch:
        from mxfp4_core.arithmetic.fast import choose, dual, mxfp8, single

        for module in (choose, dual, mxfp8, single):
            module.cpu_kernels = lambda name="": None
    print(
        "| format | profile | dtype | threads | G values/s | of mxfp4 | with |\n|---|---|---|--:|--:|--:|---|"
    )
    for threads in options.threads:
        torch.set_num_threads(threads)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            measure(dtype, options.size, threads)


if __name__ == "__main__":
    main()
