"""Run us and the peers on the same inputs, in one process, by the same clock."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from hopper import peers, tables, timing
from hopper.peers import vllm_files
from hopper.tables import Row, Timing

Input = TypeVar("Input")
Ways = Mapping[str, Callable[[Input], Tensor]]
ROWS = 64  # tokens of which the error is taken
LARGEST_ERROR = 5e-2  # a kernel that is further from FP32 computes something else


def arguments(about: str, shapes: Collection[str], tokens: Sequence[int]) -> argparse.ArgumentParser:
    """Return the options that both benchmarks have."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument(
        "--shapes",
        nargs="+",
        choices=shapes,
        default=list(shapes),
        metavar="SHAPE",
        help=f"of {', '.join(map(repr, shapes))}; all if left out",
    )
    parser.add_argument(
        "--m", type=int, nargs="+", default=list(tokens), help="numbers of tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--peers",
        type=_names,
        default=list(peers.USUAL),
        help=f"comma-separated, of {', '.join(peers.NAMES)}, or none (default: {','.join(peers.USUAL)})",
    )
    folder = os.environ.get("MXFP4_PEERS")
    parser.add_argument(
        "--peer-path",
        type=Path,
        default=Path(folder) if folder else None,
        help="folder of unpacked wheels; $MXFP4_PEERS if left out",
    )
    parser.add_argument(
        "--l2", choices=["cold", "warm"], default="cold", help="L2 cache before each replay (default: cold)"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file, too")
    return parser


def _names(text: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    unknown = sorted(set(names) - set(peers.NAMES))
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(peers.NAMES)}")
    return names


@dataclass
class Session:
    """One run of a benchmark.

    Attributes:
        names: peers that were asked for.
        peers: those that can run.
        reasons: why the others cannot.
        copy: GB/s.
        peak: TFLOP/s.
        flush: see ``timing.microseconds``.
        rows: results so far.
        header: of the JSON file: date, device, versions, ceilings.
    """

    names: Sequence[str]
    peers: Mapping[str, peers.Peer]
    reasons: Mapping[str, str]
    copy: float
    peak: float
    flush: Tensor | None
    rows: list[Row]
    header: dict[str, object]

    @classmethod
    def start(cls, options: argparse.Namespace, op: str) -> Session:
        """Find the peers, let them compile, measure the ceilings, print the header."""
        began = time.monotonic()
        asked = {name: peers.load(name, options.peer_path) for name in options.peers}
        reasons = {name: reason for name, peer in asked.items() if (reason := peer.available())}
        able = {name: peer for name, peer in asked.items() if name not in reasons}
        points = [(shape, m) for shape in options.shapes for m in options.m]
        for name, peer in able.items():
            started = time.monotonic()
            peer.prepare(*((points, ()) if op == "moe" else ((), points)))
            note(f"{name}: prepared in {time.monotonic() - started:.0f} s")
        copy, peak = timing.ceilings()
        header = {
            "date": str(date.today()),
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "wheels": vllm_files.wheels(options.peer_path),
            "copy_gb_s": round(copy),
            "bf16_tflop_s": round(peak),
            "l2": options.l2,
        }
        print(f"{header['date']}, {header['device']}, torch {header['torch']}, {', '.join(header['wheels'])}")
        print(f"copy {copy:.0f} GB/s, BF16 matmul {peak:.0f} TFLOP/s; L2 cache {options.l2} for everyone\n")
        for name, reason in reasons.items():
            print(f"not measured: {name}: {reason}\n")
        print("\n".join(tables.markdown([], options.peers)), flush=True)
        note(f"started in {time.monotonic() - began:.0f} s")
        flush = timing.flush_buffer() if options.l2 == "cold" else None
        return cls(options.peers, able, reasons, copy, peak, flush, [], header)

    def shape(
        self,
        name: str,
        inputs: Mapping[int, Input],
        floors: Mapping[int, float],
        ours: Callable[[], Ways[Input]],
        theirs: Mapping[str, Callable[[], Ways[Input]]],
        truth: Callable[[Input, str], Tensor],
    ) -> None:
        """Measure one shape: us, then each peer, over all numbers of tokens.

        Args:
            name: of the shape.
            inputs: by number of tokens.
            floors: microseconds, by number of tokens.
            ours: lays out our weights.
            theirs: the same for each peer.
            truth: FP32 result of the first ``ROWS`` tokens, for an activation.
        """
        truths: dict[tuple[int, str], Tensor] = {}
        found: dict[str, dict[int, Timing | str]] = {}
        for who, prepare in {"": ours, **theirs}.items():
            started = time.monotonic()
            gate, threads = ("silu", 1) if not who else (self.peers[who].gate, self.peers[who].threads)
            try:
                ways = prepare()
                first_calls(ways, list(inputs.values()), threads)
            except Exception as error:
                found[who] = dict.fromkeys(inputs, _short(error))
                continue
            found[who] = {}
            for m, value in inputs.items():
                if (m, gate) not in truths:
                    truths[m, gate] = truth(value, gate)
                found[who][m] = fastest(ways, value, truths[m, gate], self.flush)
            del ways
            torch.cuda.empty_cache()
            note(f"{name}, {who or 'ours'}: {time.monotonic() - started:.1f} s")
        for m in inputs:
            others = {who: found[who][m] if who in found else self.reasons[who] for who in self.names}
            self.rows.append(Row(name, m, floors[m], found[""][m], others))
            print(tables.line(self.rows[-1], self.names), flush=True)

    def finish(self, path: Path | None) -> None:
        """Print what the figures say, and write them."""
        print("\n" + "\n\n".join(tables.summary(self.rows, self.names)))
        if path:
            tables.write_json(path, self.header, self.rows)


def fastest(ways: Ways[Input], value: Input, truth: Tensor, flush: Tensor | None) -> Timing | str:
    """Return the fastest way that computes the right thing, or why there is none."""
    best: Timing | None = None
    reason = "no composition for this number of tokens"
    for name, run in ways.items():
        try:
            error = timing.relative_error(run(value)[: truth.shape[0]], truth)
            if not error < LARGEST_ERROR:
                reason = f"{name}: wrong, error {error:.1e}"
                continue
            took = timing.microseconds(lambda run=run: run(value), flush=flush)
        except peers.OtherSizeError:
            continue
        except Exception as failure:
            reason = f"{name}: {_short(failure)}"
            continue
        if best is None or took < best.us:
            best = Timing(took, error, name)
    return best or reason


def first_calls(ways: Ways[Input], values: Sequence[Input], threads: int) -> None:
    """Let kernels that compile when they are called do it at the same time."""
    if threads == 1:
        return

    def call(run: Callable[[Input], Tensor], value: Input) -> None:
        # What fails here fails again where it is timed, and is reported there.
        try:
            run(value)
        except peers.OtherSizeError:
            pass
        except Exception as error:
            note(_short(error))

    jobs = [(run, value) for run in ways.values() for value in values]
    call(*jobs[0])
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda job: call(*job), jobs[1:]))
    torch.cuda.synchronize()


def note(text: str) -> None:
    """Say on stderr how far we are."""
    print(text, file=sys.stderr, flush=True)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
