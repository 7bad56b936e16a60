"""Pieces of a benchmark: each in a process that is ended in time, each answer kept as soon as it is there."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from serving.sizes import MODELS

GIB = 1 << 30
ANSWER = "answer.json"
PROMPT, OUTPUT = 512, 128
REPEATS = 3
Answer = dict[str, Any]


def apart(
    work: Callable[[Callable[[Answer], None]], None],
    folder: Path,
    limit: float,
    *,
    watch: Callable[[str], None] | None = None,
) -> Answer:
    """Run something in a child of this process, which has imported what takes long, and return what it answered.

    Args:
        work: is given a function that keeps what is known so far.
        folder: for the answer and the log.
        limit: seconds after which the child and all its children are killed.
        watch: called with the log every 20 ms.

    Returns:
        What was kept last, ``seconds``, ``log`` (its path), and ``error``, the last lines of the log, where the child
        failed or was killed.
    """
    answer, log = folder / ANSWER, folder / "log"
    folder.mkdir(parents=True, exist_ok=True)
    for left in (answer, log):
        left.unlink(missing_ok=True)
    sys.stdout.flush()
    began = time.monotonic()
    if (child := os.fork()) == 0:
        _work(work, answer, log)
    status = None
    while status is None:
        if watch is not None:
            watch(log.read_text(errors="replace") if log.exists() else "")
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = "" if code == 0 else f"ended with {os.waitstatus_to_exitcode(code)}"
        elif time.monotonic() - began > limit:
            status = f"killed after {limit:.0f} s"
        else:
            time.sleep(0.02)
    _end(child)
    found: Answer = json.loads(answer.read_text()) if answer.exists() else {}
    found |= {"seconds": round(time.monotonic() - began, 1), "log": str(log)}
    if status:
        found["error"] = [status, *last_lines(log)]
    return found


def last_lines(log: Path, count: int = 5) -> list[str]:
    """Return the last lines of a log that say something."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [line.strip()[:300] for line in lines if line.strip()][-count:]


def measure(
    generate: Callable[[int, int], None], counts: Sequence[int], keep: Callable[[Answer], None]
) -> Answer:
    """Time an engine, for each number of requests at a time.

    Args:
        generate: generates so many tokens for so many new requests.
        counts: numbers of requests.
        keep: is given the answer after each number.

    Returns:
        By number of requests: ``first_s``, until every request has its first token; ``tokens_per_s``, all output tokens
        over the whole time; ``decode_per_s``, those after the first over the time after it. Medians of `REPEATS`,
        after one round that is not counted.
    """
    found: Answer = {}
    for count in counts:
        _timed(generate, count, 8)
        first = statistics.median(_timed(generate, count, 1) for _ in range(REPEATS))
        whole = statistics.median(_timed(generate, count, OUTPUT) for _ in range(REPEATS))
        found[str(count)] = {
            "first_s": first,
            "tokens_per_s": count * OUTPUT / whole,
            "decode_per_s": count * (OUTPUT - 1) / (whole - first),
        }
        keep(found)
    return found


def heading(counts: Sequence[int]) -> str:
    """Return the first two lines of the table."""
    cells = [f"{count}: first, ms | tokens/s | decode/s" for count in counts]
    line = f"| model | weights | start, s | load peak, GiB | limit, GiB | {' | '.join(cells)} |"
    return line + "\n|---|---" + "|--:" * (3 + 3 * len(counts)) + "|"


def row(found: Answer, counts: Sequence[int]) -> str:
    """Return a line of the table; of a piece that failed, what is known of it and the end of its log."""
    cells = []
    for count in counts:
        one = found.get("speed", {}).get(str(count))
        rates = [f"{one[key]:.0f}" for key in ("tokens_per_s", "decode_per_s")] if one else ["-", "-"]
        cells += [f"{one['first_s'] * 1e3:.0f}" if one else "-", *rates]
    start, peak = (f"{found[key]:.2f}" if key in found else "-" for key in ("start_s", "load_peak_gib"))
    cells = [found["model"], found["variant"], start, peak, f"{found['limit_gib']:.2f}", *cells]
    lines = [f"| {' | '.join(cells)} |", *(f"    {each}" for each in found["kernels"])]
    return "\n".join([*lines, *(f"    {each}" for each in found.get("error", ()))])


def tell(found: Answer, engine: str, variant: str, written: Any, options: argparse.Namespace) -> None:
    """Print what one piece found, and append it to the file of JSON lines.

    Args:
        found: by `apart`, with ``kernels``: what the log says of them.
        engine: its name and version.
        variant: how the model was served.
        written: the model.
        options: see `add_arguments`.
    """
    found |= {"engine": engine, "model": written.name, "variant": variant, "layers": written.layers}
    found["limit_gib"] = written.limit / GIB
    note(found, options.out)
    print(row(found, options.concurrency), flush=True)


def note(found: Answer, out: Path | None) -> None:
    """Append an answer to a file of JSON lines, where there is one."""
    if out is not None:
        with out.open("a") as lines:
            lines.write(json.dumps(found) + "\n")


def add_arguments(
    parser: argparse.ArgumentParser, variants: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> None:
    """Add the options that benchmarks of engines share; variants of ``more`` run where they are named."""
    names = list(MODELS)
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--variants", nargs="+", choices=[*variants, *(more or ())], default=list(variants))
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--layers", type=int, default=0, help="of each model; all if 0")
    parser.add_argument("--limit", type=float, default=100, help="seconds for one variant of one model")
    parser.add_argument("--folder", type=Path, default=Path("build/serving"), help="for models and logs")
    parser.add_argument("--out", type=Path, help="file of JSON lines, one for each variant, as they come")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only to see it run")


def write_answer(answer: Path, found: Answer) -> None:
    """Write what is known so far, whole or not at all."""
    whole = answer.with_suffix(".part")
    whole.write_text(json.dumps(found))
    whole.replace(answer)


def _timed(generate: Callable[[int, int], None], count: int, tokens: int) -> float:
    began = time.perf_counter()
    generate(count, tokens)
    return time.perf_counter() - began


def _work(work: Callable[[Callable[[Answer], None]], None], answer: Path, log: Path) -> None:
    """Be the child: never return."""
    code = 1
    try:
        os.setsid()
        with log.open("wb") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(each, "w", closefd=False) for each in (1, 2))

        work(partial(write_answer, answer))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end(group: int) -> None:
    """Kill what is left of the group of a child, and take its status."""
    try:
        os.killpg(group, signal.SIGKILL)
        os.waitpid(group, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
