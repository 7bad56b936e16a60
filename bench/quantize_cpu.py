"""How fast does a CPU quantise and dequantise, against a copy of the same bytes and against peers?

Usage: python bench/quantize_cpu.py [--size 4096] [--threads 1 2] [--json FILE]

Every row is the median of at least five runs in this process, after one that compiles. "Of copy" divides the bytes
moved a second (weight read, codes and scales written, or the other way round) by those of ``torch.Tensor.copy_`` on the
same number of threads. Peers that are not installed are named as missing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import mxfp4_core

MX_BYTES = 17 / 32  # codes and scales of one value
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def seconds(run: Callable[[], object], least: float = 0.6) -> float:
    """Return the median time of a call, over at least five calls and ``least`` seconds."""
    run()
    times: list[float] = []
    while len(times) < 5 or sum(times) < least:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def torchao_quantize(weight: torch.Tensor) -> Callable[[], object]:
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    mode = ScaleCalculationMode.EVEN
    return lambda: MXTensor.to_mx(weight, torch.float4_e2m1fn_x2, 32, scaling_mode=mode)


def gguf_quantize(weight: torch.Tensor) -> Callable[[], object]:
    from gguf import GGMLQuantizationType, quants

    array = weight.float().numpy()
    return lambda: quants.quantize(array, GGMLQuantizationType.MXFP4)


PEERS = {"torchao": (torchao_quantize, 1 << 10), "gguf": (gguf_quantize, 1 << 10)}


def measure(size: int, threads: int) -> list[dict[str, object]]:
    torch.set_num_threads(threads)
    rows: list[dict[str, object]] = []
    values = size * size
    copies: dict[torch.dtype, float] = {}

    def add(what: str, dtype: torch.dtype, count: int, spent: float, moved: float) -> None:
        rate = count / spent
        share = rate * moved / copies[dtype]
        rows.append(
            {
                "what": what,
                "dtype": str(dtype)[6:],
                "threads": threads,
                "G values/s": rate / 1e9,
                "of copy": share,
            }
        )

    for dtype in DTYPES:
        weight = (torch.randn(size, size) * 0.02).to(dtype)
        target = torch.empty_like(weight)
        moved = weight.element_size() + MX_BYTES
        spent = seconds(lambda: target.copy_(weight))  # noqa: B023  # called at once
        copies[dtype] = values * 2 * weight.element_size() / spent
        add("copy", dtype, values, spent, 2 * weight.element_size())
        quantised = mxfp4_core.quantize(weight)
        codes, scales = torch.empty_like(quantised.codes), torch.empty_like(quantised.scales)
        add(
            "mxfp4 quantize_into",
            dtype,
            values,
            seconds(lambda: mxfp4_core.quantize_into(weight, codes, scales)),  # noqa: B023
            moved,
        )
        add("mxfp4 quantize", dtype, values, seconds(lambda: mxfp4_core.quantize(weight)), moved)  # noqa: B023
        spent = seconds(lambda: mxfp4_core.dequantize(codes, scales, dtype, out=target))  # noqa: B023
        add("mxfp4 dequantize, out=", dtype, values, spent, moved)
        spent = seconds(lambda: mxfp4_core.dequantize(codes, scales, dtype))  # noqa: B023
        add("mxfp4 dequantize", dtype, values, spent, moved)
        for name, (make, side) in PEERS.items():
            if dtype is torch.float16 and name == "torchao":
                continue  # to_mx takes bfloat16 and float32
            small = weight[:side, :side].contiguous()
            try:
                run = make(small)
            except ImportError as error:
                rows.append({"what": f"{name}: missing ({error})", "dtype": "", "threads": threads})
                continue
            add(f"{name} quantize", dtype, small.numel(), seconds(run), moved)
    return rows


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def versions() -> str:
    found = []
    for name in ("torch", "numba", "torchao", "gguf"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    print(f"{date.today()}, {processor()}, Python {platform.python_version()}, {versions()}")
    print(f"weight {options.size} x {options.size}; peers on 1024 x 1024\n")
    print("| what | dtype | threads | G values/s | of copy |\n|---|---|--:|--:|--:|")
    rows = [row for threads in sorted(set(options.threads)) for row in measure(options.size, threads)]
    for row in rows:
        rate, share = row.get("G values/s"), row.get("of copy")
        cells = [f"{rate:.3f}" if rate else "", f"{share:.2f}" if share else ""]
        print("|", " | ".join([str(row["what"]), str(row["dtype"]), str(row["threads"]), *cells]), "|")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
