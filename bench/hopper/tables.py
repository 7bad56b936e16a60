"""Results as rows, and what is said about them: Markdown, JSON, means, and where we are behind."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hopper.peers import W4A16


@dataclass(frozen=True)
class Timing:
    """One kernel at one number of tokens.

    Attributes:
        us: median microseconds.
        error: norm of the difference from FP32 over the norm of FP32.
        way: the fastest of the peer's compositions.
    """

    us: float
    error: float
    way: str = ""


@dataclass(frozen=True)
class Row:
    """One shape at one number of tokens.

    Attributes:
        shape: name of the shape.
        m: tokens.
        floor: microseconds below which no kernel can be.
        ours: our backend's timing, or why there is none.
        peers: timings, or why there is none.
    """

    shape: str
    m: int
    floor: float
    ours: Timing | str
    peers: Mapping[str, Timing | str] = field(default_factory=dict)

    def best(self) -> tuple[str, float] | None:
        """Return the fastest W4A16 peer and its microseconds, or None."""
        found = {name: t.us for name, t in self.peers.items() if name in W4A16 and isinstance(t, Timing)}
        return min(found.items(), key=lambda item: item[1]) if found else None

    def gain(self, name: str = "") -> float | None:
        """Return how many times faster we are than a peer, or than the best W4A16 peer."""
        timing = self.peers.get(name)
        peer = timing.us if isinstance(timing, Timing) else None
        best = self.best()
        if not name:
            peer = best[1] if best else None
        return None if peer is None or isinstance(self.ours, str) else peer / self.ours.us


def markdown(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Return the lines of a table: a column of microseconds for each peer, and its error below it in brackets."""
    head = ["shape", "m", "floor us", "ours us", "of floor", *(f"{name} us" for name in names), "best peer"]
    head += ["x best", "errors: " + ", ".join(["ours", *names])]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(names) + 4) + "---|--:|---|"]
    return lines + [line(row, names) for row in rows]


def line(row: Row, names: Sequence[str]) -> str:
    """Return one line of the table."""
    best, gain = row.best(), row.gain()
    all_of_it = [row.ours, *(row.peers.get(name, "-") for name in names)]
    times = [f"{one.us:.1f}" if isinstance(one, Timing) else "-" for one in all_of_it]
    errors = [f"{one.error:.0e}" if isinstance(one, Timing) else "-" for one in all_of_it]
    above = f"{row.ours.us / row.floor:.2f}" if isinstance(row.ours, Timing) else "-"
    cells = [row.shape, str(row.m), f"{row.floor:.1f}", times[0], above, *times[1:], best[0] if best else "-"]
    cells += [f"{gain:.2f}" if gain else "-", " ".join(errors)]
    return "| " + " | ".join(cells) + " |"


def summary(rows: Sequence[Row], names: Sequence[str], slack: float = 1.03) -> list[str]:
    """Return geometric means, and the points where we are behind.

    Args:
        rows: all points.
        names: the peers.
        slack: how many times slower than the best W4A16 peer is still called level.
    """
    lines = []
    gains = [gain for row in rows if (gain := row.gain())]
    if gains:
        lines.append(f"geometric mean against the best W4A16 peer of each point: {mean(gains):.2f}")
    for name in names:
        found = [gain for row in rows if (gain := row.gain(name))]
        if found:
            lines.append(f"geometric mean against {name}: {mean(found):.2f} over {len(found)} points")
    for shape in dict.fromkeys(row.shape for row in rows):
        found = [gain for row in rows if row.shape == shape and (gain := row.gain())]
        if found:
            lines.append(f"geometric mean for {shape}: {mean(found):.2f}")
    behind = [row for row in rows if (gain := row.gain("marlin")) and gain < 1]
    lines.append("slower than Marlin: " + (_points(behind, "marlin") if behind else "nowhere"))
    behind = [row for row in rows if (gain := row.gain()) and gain * slack < 1]
    lines.append(
        f"more than {slack - 1:.0%} behind the best W4A16 peer: " + (_points(behind) if behind else "nowhere")
    )
    reasons: dict[str, Row] = {}
    for row in rows:
        for name, peer in {"ours": row.ours, **row.peers}.items():
            if isinstance(peer, str):
                reasons.setdefault(f"{name}: {peer}", row)
    lines += [f"no result of {reason} (first at {row.shape}, m = {row.m})" for reason, row in reasons.items()]
    ways: dict[str, list[str]] = {}
    for row in rows:
        for name, peer in row.peers.items():
            if isinstance(peer, Timing) and peer.way not in ("", "default"):
                ways.setdefault(f"{name}, {peer.way}", []).append(f"{row.shape} {row.m}")
    lines += [f"fastest composition of {way}: {', '.join(points)}" for way, points in sorted(ways.items())]
    return lines


def _points(rows: Iterable[Row], name: str = "") -> str:
    return ", ".join(f"{row.shape} m = {row.m} ({row.gain(name):.2f})" for row in rows)


def mean(values: Iterable[float]) -> float:
    """Return the geometric mean."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def write_json(path: Path, header: Mapping[str, object], rows: Sequence[Row]) -> None:
    """Write everything that was measured."""
    points = [{**asdict(row), "best": row.best(), "x_best": row.gain()} for row in rows]
    path.write_text(json.dumps({**header, "rows": points}, indent=1) + "\n", encoding="utf-8")
