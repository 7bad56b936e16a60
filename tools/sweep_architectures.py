"""Try a tiny model of every type that transformers maps, and say what does not hold.

    python tools/linked.py tools/sweep_architectures.py --types gpt2,llama
    nox -s architectures -- --jobs 8 --json results.jsonl --page docs/architectures.md

Exit code 1 if a type is faulty.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections import Counter
from datetime import date
from fnmatch import fnmatch
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from architectures import rows
from architectures.catalogue import TASKS, kinds
from architectures.page import write
from architectures.sweep import sweep


def machine() -> str:
    """Return the machine, the versions and the date, for the page."""
    import torch
    import transformers

    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return f"{name or platform.processor()} ({platform.machine()}), {versions}, {date.today()}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--types", help="names with commas between; * is a wildcard", default="*")
    parser.add_argument("--task", choices=[*TASKS], help="only types of one task")
    parser.add_argument("--jobs", type=int, default=1, help="types at a time")
    parser.add_argument("--timeout", type=float, default=180, help="seconds for one type")
    parser.add_argument("--slice", help="I/N: the I-th of N parts, from 0", default="0/1")
    parser.add_argument("--json", type=Path, help="file of results, a JSON line for each type")
    parser.add_argument(
        "--again", choices=[*rows.STATUSES], action="append", help="with --json: repeat these, too"
    )
    parser.add_argument("--list", action="store_true", help="print the types and stop")
    parser.add_argument("--page", type=Path, help="write this page from the results")
    parser.add_argument("--note", default="", help="what a reader of the page has to know of these results")
    given = parser.parse_args()
    wanted = [
        kind for kind in kinds().values() if any(fnmatch(kind.name, text) for text in given.types.split(","))
    ]
    wanted = [kind for kind in wanted if given.task in (None, kind.task)]
    part, count = map(int, given.slice.split("/"))
    wanted = wanted[part::count]
    known = rows.read(given.json) if given.json else {}
    left = [
        kind for kind in wanted if kind.name not in known or known[kind.name].status in (given.again or ())
    ]
    if given.list:
        print("\n".join(f"{kind.name}  {kind.task}" for kind in left))
        return
    done: list[rows.Row] = [known[kind.name] for kind in wanted if kind not in left]

    here = machine()

    def found(row: rows.Row) -> None:
        row.where = here
        done.append(row)
        if given.json:
            rows.append(given.json, row)
        print(f"{len(done):4}/{len(wanted)} {row.seconds:5.1f} s  {row.line}", flush=True)

    sweep(left, jobs=given.jobs, timeout=given.timeout, found=found)
    counts = Counter(row.status for row in done)
    print(", ".join(f"{counts[status]} {status}" for status in rows.STATUSES if counts[status]))
    if given.page:
        told = [word for word in sys.argv[1:] if word not in ("--note", given.note)]
        write(given.page, done, " ".join(["nox -s architectures --", *told]), given.note)
    sys.exit(1 if counts[rows.FAULT] else 0)


if __name__ == "__main__":
    main()
