"""What came of it, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fuzzing.crashes import Kills
from fuzzing.flips import Flips
from fuzzing.inputs import Outcome


def inputs_table(outcomes: Sequence[Outcome]) -> str:
    """Return one line for each reader."""
    head = (
        "reader",
        "inputs",
        "read",
        "refused",
        "other errors",
        "slowest",
        "memory",
        "inputs/s of processor",
    )
    rows = [
        (
            one.name,
            f"{one.inputs:,}",
            f"{one.accepted:,}",
            ", ".join(f"{name} {count:,}" for name, count in one.refused.most_common()),
            str(one.failed),
            f"{one.slowest * 1e3:.0f} ms",
            f"+{one.grown / 2**20:.0f} MiB",
            f"{one.inputs / one.processor:,.0f}" if one.processor else "",
        )
        for one in outcomes
    ]
    return _markdown(head, rows)


def kills_table(outcomes: Sequence[Kills]) -> str:
    """Return one line for each command and way to kill it."""
    head = ("command", "calls", "kills", "during commit", "not as it should be", "seconds")
    rows = [
        (
            one.name,
            str(one.points or ""),
            str(one.kills),
            str(one.in_commit),
            str(len(one.failures)),
            f"{one.seconds:.0f}",
        )
        for one in outcomes
    ]
    return _markdown(head, rows)


def flips_table(outcomes: Sequence[Flips]) -> str:
    """Return one line for each result."""
    head = ("result", "files", "bits", "flips", "not found", "seconds")
    rows = [
        (
            one.name,
            str(len(one.by_file)),
            f"{one.bits:,}",
            f"{one.flips:,}",
            str(len(one.missed)),
            f"{one.seconds:.0f}",
        )
        for one in outcomes
    ]
    return _markdown(head, rows)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["--"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


__all__ = ["flips_table", "inputs_table", "kills_table"]
