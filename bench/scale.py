"""How fast does `quantize` go from file to file, in one process and in several, and what does a weight file cost?

Usage: python bench/scale.py [--gib 4] [--files 8] [--jobs 1 2] [--runs 3] [--folder DIR] [--json FILE]

A checkpoint of random BF16 weights is made once in DIR. Each run is a process of its own, whose source is dropped from
the cache of the operating system before; the best of some counts. A process is timed from when it has loaded torch and
the kernels, which takes some seconds, once; processor seconds of several processes include that. The two rates to
compare with are measured here: the disk reading the same files with nothing done to them (cache dropped, too), through
that cache and past it, of which the faster counts; and one thread quantising in memory.
The load of the machine is printed with the result: where it was not idle, the numbers are none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
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
from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.checkpoint.ahead import ReadAhead
from mxfp4_core.checkpoint.direct import Span
from mxfp4_core.checkpoint.shard import BUFFERS, THREADS
from mxfp4_core.jobs import processes, quantize_checkpoint
from mxfp4_core.jobs.units import CHUNK_BYTES, QuantizeUnit

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


def disk_rate(folder: Path, runs: int) -> tuple[float, float]:
    """Return the bytes a second at which the files are read and thrown away: through the cache, and past it."""
    through, past = 0.0, 0.0
    buffer = memoryview(bytearray(4 << 20))
    tensors = list(open_checkpoint(folder).tensors.values())
    size = sum(info.nbytes for info in tensors)
    for _ in range(runs):
        forget(folder)
        start = time.perf_counter()
        for path in sorted(folder.glob("*.safetensors")):
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        through = max(through, size / (time.perf_counter() - start))
        forget(folder)
        start = time.perf_counter()
        spans = [Span(info, 1, CHUNK_BYTES) for info in tensors]
        reader = ReadAhead(
            spans, pinned=False, chunk_bytes=CHUNK_BYTES, buffers=BUFFERS, threads=THREADS, once=True
        )
        for span in spans:
            for _chunk in reader.take(span) or ():
                pass
        reader.close()
        past = max(past, size / (time.perf_counter() - start))
    return through, past


def quantizer_rate(source: Path) -> float:
    """Return the bytes of BF16 a second that one thread quantises, by the function that the job calls.

    Its chunks lie where the job has them: in a few buffers, in the processor's cache as far as they fit.
    """
    checkpoint = open_checkpoint(source)
    name, info = next(iter(checkpoint.tensors.items()))
    unit = QuantizeUnit(checkpoint, name, ("codes", "scales"), "even/even")
    size = CHUNK_BYTES // (2 * K) * 2 * K
    rows = checkpoint.rows(name, 0, ROWS).view(torch.uint8).reshape(-1)
    buffers = [rows[at : at + size].clone() for at in range(0, BUFFERS * size, size)]
    threads, best = torch.get_num_threads(), 0.0
    torch.set_num_threads(1)
    for _ in range(8):
        chunks = (buffers[number % BUFFERS] for number in range(info.nbytes // size))
        start = time.perf_counter()
        for _piece in unit.stream(lambda nbytes: None, chunks):
            pass
        best = max(best, info.nbytes / (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return best


def warm() -> None:
    """Load in a process what its first file would load: torch and the compiled kernels."""
    form = formats.get("mxfp4")
    form.quantize_into(torch.ones(1, 32).bfloat16(), form.empty((1, 32)), profile="even/even")
    time.sleep(1)  # so that the next call goes to another process


def used() -> float:
    """Return the processor seconds of this process and of those that it has waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


def child(source: str, target: str, jobs: int, shard_bytes: int) -> None:
    """Quantise, and print the time and the peak of memory of this process and of its largest child."""
    start = time.perf_counter()
    warm()
    with processes(jobs) as executor:
        if executor is not None:
            for loaded in [executor.submit(warm) for _ in range(jobs)]:
                loaded.result()
        before, began = used(), time.perf_counter()
        result = quantize_checkpoint(
            source, target, max_shard_bytes=shard_bytes, models="none", executor=executor
        )
        ended = time.perf_counter()
    own = int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])
    others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    told = {
        "seconds": ended - began,
        "start_seconds": began - start,
        "peak_bytes": (own if jobs == 1 else others) * 1024,
        "files": len(result.files),
        "source_bytes": result.source_bytes,
        "cpu_seconds": used() - before,
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
        (through, past), quantizer = disk_rate(source, options.runs), quantizer_rate(source)
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        shard_bytes = int(size / options.files * 17 / 64) + 1
        rows = {jobs: measured(source, folder, jobs, shard_bytes, options.runs) for jobs in options.jobs}
    slower = min(max(through, past), quantizer)
    first = rows[options.jobs[0]]
    print(
        f"load {load:.2f} at the beginning, {os.getloadavg()[0]:.2f} at the end, {os.cpu_count()} processors\n"
    )
    print(
        f"disk {through / 1e9:.2f} GB/s through the cache of the system, {past / 1e9:.2f} past it; "
        f"one thread quantises {quantizer / 1e9:.2f} GB/s\n"
    )
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
        told = {"load": load, "disk": max(through, past), "quantizer": quantizer, "rows": rows}
        options.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
