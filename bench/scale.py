"""How fast does `quantize` go from file to file, in one process and in several, and what does a weight file cost?

Usage: python bench/scale.py [--gib 4] [--files 8] [--jobs 1 2] [--runs 3] [--folder DIR] [--json FILE]

A checkpoint of random BF16 weights is made once in DIR. Each run is a process of its own, whose source is dropped from
the cache of the operating system before; the best of some counts. The two rates to compare with are measured here:
the disk reading the same files with nothing done to them (cache dropped, too), and one thread quantising in memory.
The load of the machine is printed with the result: where it was not idle, the numbers are none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.jobs import processes, quantize_checkpoint

ROWS, K = 4096, 8192  # 64 MiB


def make_source(folder: Path, gib: float, files: int) -> None:
    """Write a checkpoint of random weights, in as many files."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    weight_map, count = {}, max(1, int(gib * 1024 / 64 / files))
    for number in range(files):
        tensors = {}
        for each in range(count):
            name = f"model.layers.{number * count + each}.mlp.up_proj.weight"
            tensors[name] = torch.randn(ROWS, K, generator=generator).bfloat16()
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def forget(folder: Path) -> None:
    """Drop the files from the cache of the operating system."""
    os.sync()
    for path in folder.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def disk_rate(folder: Path, runs: int) -> float:
    """Return the bytes a second at which the files are read and thrown away."""
    rates = []
    buffer = memoryview(bytearray(4 << 20))
    for _ in range(runs):
        forget(folder)
        start, total = time.perf_counter(), 0
        for path in sorted(folder.glob("*.safetensors")):
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total += count
        rates.append(total / (time.perf_counter() - start))
    return max(rates)


def quantizer_rate() -> float:
    """Return the bytes of BF16 a second that one thread quantises in memory."""
    form = formats.get("mxfp4")
    weight = torch.randn(ROWS, K).bfloat16()
    parts = form.empty(weight.shape)
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        form.quantize_into(weight, parts, profile="even/even", threads=1)
        best = max(best, weight.nbytes / (time.perf_counter() - start))
    return best


def child(source: str, target: str, jobs: int, shard_bytes: int) -> None:
    """Quantise, and print the time and the peak of memory of this process and of its largest child."""
    start = time.perf_counter()
    with processes(jobs) as executor:
        began = time.perf_counter()
        result = quantize_checkpoint(
            source, target, max_shard_bytes=shard_bytes, models="none", executor=executor
        )
        ended = time.perf_counter()
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    told = {
        "seconds": ended - began,
        "with_start": time.perf_counter() - start,
        "peak_bytes": max(own.ru_maxrss if jobs == 1 else 0, others.ru_maxrss) * 1024,
        "files": len(result.files),
        "source_bytes": result.source_bytes,
        "cpu_seconds": own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime,
    }
    print(json.dumps(told))


def measured(source: Path, folder: Path, jobs: int, shard_bytes: int, count: int) -> dict[str, float]:
    """Return the best of some runs."""
    runs: list[dict[str, float]] = []
    for _ in range(count):
        target = folder / "target"
        shutil.rmtree(target, ignore_errors=True)
        forget(source)
        command = [sys.executable, __file__, "--child", str(source), str(target), str(jobs), str(shard_bytes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
        shutil.rmtree(target)
    return min(runs, key=lambda run: run["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.child[1], int(options.child[2]), int(options.child[3]))
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source = folder / "source"
        make_source(source, options.gib, options.files)
        disk, quantizer = disk_rate(source, options.runs), quantizer_rate()
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        shard_bytes = int(size / options.files * 17 / 64) + 1
        rows = {jobs: measured(source, folder, jobs, shard_bytes, options.runs) for jobs in options.jobs}
    slower = min(disk, quantizer)
    first = rows[options.jobs[0]]
    print(
        f"load {load:.2f} at the beginning, {os.getloadavg()[0]:.2f} at the end, {os.cpu_count()} processors\n"
    )
    print(f"disk {disk / 1e9:.2f} GB/s, one thread quantises {quantizer / 1e9:.2f} GB/s\n")
    print(
        "| processes | GB/s of source | of the slower rate | times one process | s a file | CPU s a GB | peak GiB |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for jobs, run in rows.items():
        rate = run["source_bytes"] / run["seconds"]
        a_file = run["seconds"] * jobs / run["files"]
        gigabytes = run["source_bytes"] / 1e9
        print(
            f"| {jobs} | {rate / 1e9:.2f} | {rate / slower:.0%} | {first['seconds'] / run['seconds']:.2f} "
            f"| {a_file:.2f} | {run['cpu_seconds'] / gigabytes:.2f} | {run['peak_bytes'] / 2**30:.2f} |"
        )
    print(
        f"\n{options.gib:g} GiB in {options.files} files; Python {platform.python_version()}, torch {torch.__version__}"
        f", numba {version('numba')}, {date.today()}"
    )
    if options.json:
        told = {"load": load, "disk": disk, "quantizer": quantizer, "rows": rows}
        options.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
