"""Feed every reader with hostile input, kill runs, flip bits of results; see `fuzzing`.

    nox -s fuzz                                                  # bounded: some 20 seconds
    nox -s fuzz -- --count 1000000 --kills 100 --points all --flips all --json results.json
    python tools/linked.py tools/fuzz.py --reader header --minutes 5 --seed 7
    python tools/linked.py tools/fuzz.py --seed 7 --reader header --first 1234 --count 1    # one input again

Equal arguments give equal inputs. Exit code 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")  # lives through a fork

from fuzzing import crashes, flips, inputs, material, table
from fuzzing.readers import READERS

ALL = 10**12
BOUNDED = {"seconds": 0.7, "kills": 4, "points": 8, "flips": 100}
"""Without options: for each reader, command and result."""


def number(text: str) -> int:
    """Read a number, or ``all``."""
    return ALL if text == "all" else int(text)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers")
    parser.add_argument(
        "--reader", choices=[*READERS], action="append", help="only this reader; may be repeated"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--count", type=int, help="inputs for each reader")
    parser.add_argument("--minutes", type=float, help="minutes for each reader")
    parser.add_argument("--kills", type=int, help="kills at random moments, for each command")
    parser.add_argument("--points", type=number, help="calls before which each command is killed, or all")
    parser.add_argument("--flips", type=number, help="flips for each result, or all")
    parser.add_argument("--part", default="0/1", help="I/N: the I-th of N parts of all flips, from 0")
    parser.add_argument("--json", type=Path, help="file for the results")
    given = parser.parse_args()
    asked = [given.reader, given.count, given.minutes, given.kills, given.points, given.flips]
    bounded = all(each is None for each in asked)
    with tempfile.TemporaryDirectory(prefix="mxfp4-fuzz-", dir=_fast()) as room:
        sys.exit(_run(given, Path(room), bounded))


def _run(given: argparse.Namespace, room: Path, bounded: bool) -> int:
    material.quantised(room / "made")  # here, so that runs that are killed find everything loaded
    material.smallest(room / "small")
    made = {
        name: room / "made" / name
        for name in ("plain", *material.DIALECTS, *material.OTHERS, *material.MIXED)
    }
    made["small"] = room / "small" / "few-native"
    kills = _kills(given, made, room / "killed", bounded)
    fed = _feed(given, made, room, bounded)
    flipped = _flip(given, room / "small", bounded)
    for rows, shown in ((fed, table.inputs_table), (kills, table.kills_table), (flipped, table.flips_table)):
        if rows:
            print(shown(rows), end="\n\n", flush=True)  # type: ignore[operator]
    wrong = [text for one in (*fed, *kills) for text in one.failures]
    wrong += [f"{one.name}: not found: {text}" for one in flipped for text in one.missed]
    print("\n".join(wrong) or "all as it should be")
    if given.json:
        rows = {"inputs": fed, "kills": kills, "flips": flipped}
        found = {name: [one.to_dict() for one in each] for name, each in rows.items()}
        given.json.write_text(json.dumps({"seed": given.seed, **found}, indent=1) + "\n")
    return bool(wrong)


def _feed(
    given: argparse.Namespace, made: dict[str, Path], room: Path, bounded: bool
) -> list[inputs.Outcome]:
    if not (bounded or given.count or given.minutes):
        return []
    seconds = given.minutes * 60 if given.minutes else BOUNDED["seconds"] if bounded else 1e9
    found = []
    for name in given.reader or READERS:
        reader = READERS[name](made, room / "read" / name)
        count = given.count or ALL
        found.append(
            inputs.feed(name, reader, seed=given.seed, first=given.first, count=count, seconds=seconds)
        )
    return found


def _kills(
    given: argparse.Namespace, made: dict[str, Path], destination: Path, bounded: bool
) -> list[crashes.Kills]:
    points = BOUNDED["points"] if bounded else given.points or 0
    count = BOUNDED["kills"] if bounded else given.kills or 0
    found = []
    for name, job in crashes.jobs(made, destination).items() if points or count else ():
        crashes.in_child(job)
        whole = crashes.contents(destination)
        if points:
            crashes.shutil.rmtree(destination)
            found.append(crashes.at_every_call(name, job, destination, whole, int(points), given.seed))
        if count:
            crashes.shutil.rmtree(destination, ignore_errors=True)
            found.append(crashes.at_random(name, job, destination, whole, int(count), given.seed))
    return found


def _flip(given: argparse.Namespace, small: Path, bounded: bool) -> list[flips.Flips]:
    most = int(BOUNDED["flips"]) if bounded else given.flips or 0
    part, parts = map(int, given.part.split("/"))
    folders = {path.name.removeprefix("few-"): path for path in sorted(small.glob("few-*"))} if most else {}
    return [
        flips.flip(name, folder, most=most, seed=given.seed, part=(part, parts))
        for name, folder in folders.items()
    ]


def _fast() -> str | None:
    """Return a folder in memory where there is one, since every input is written to a file."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    main()
