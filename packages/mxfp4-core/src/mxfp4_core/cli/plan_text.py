"""A plan for people: one line for each kind of weight, the totals, and what stands against it."""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mxfp4_core._text import disk_text, printable
from mxfp4_core.cli.output import beside_lines
from mxfp4_core.jobs.fit import Fit
from mxfp4_core.jobs.pipeline import PipelinePlan
from mxfp4_core.jobs.plan import Plan
from mxfp4_core.jobs.rows import Row
from mxfp4_core.naming.braces import collapse, template
from mxfp4_core.naming.vocabulary import module_of

WIDE = 1000


def print_plan(plan: Plan, *, full: bool = False) -> None:
    """Print a plan to stdout.

    Args:
        plan: the plan.
        full: one line for each tensor instead of one for each kind.
    """
    console = Console(soft_wrap=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDE  # a file or a pipe has no edge to fold names at
    console.print(_table(plan, full))
    for line in summary(plan):
        console.print(escape(printable(line)), soft_wrap=True)


def print_pipeline(pipeline: PipelinePlan, *, full: bool = False) -> None:
    """Print the plans of the models of a pipeline one after the other, and what stands against them."""
    for name, plan in pipeline.plans.items():
        print(f"component {printable(name)}:")
        print_plan(plan, full=full)
        print()
    for name, error in pipeline.errors.items():
        print(f"component {printable(name)}: {error}\n")
    if findings := pipeline.findings:
        print("\n".join(printable(finding) for finding in findings))
    else:
        print("each component is quantised by itself: mxfp4 quantize FOLDER/COMPONENT DESTINATION")


def _table(plan: Plan, full: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("weight", overflow="fold")
    table.add_column("count", justify="right")
    table.add_column("shape", no_wrap=True)
    table.add_column("becomes", no_wrap=True)
    table.add_column("before", justify="right", no_wrap=True)
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for rows in [[row] for row in plan.rows] if full else grouped(plan.rows):
        first = rows[0]
        names = [row.name for row in rows]
        for index, line in enumerate(names if full else collapse(names)):
            shown = [""] * 6
            if index == 0:
                before, after = (
                    sum(getattr(row, key) for row in rows) for key in ("bytes_before", "bytes_after")
                )
                shape = "x".join(map(str, first.shape)) or "()"
                shown = [
                    str(len(rows)),
                    shape,
                    _becomes(first),
                    disk_text(before),
                    disk_text(after),
                    _why(first),
                ]
            style = "red" if first.finding else "" if first.decision.quantize else "dim"
            table.add_row(*(escape(printable(cell)) for cell in [module_of(line), *shown]), style=style)
    return table


def grouped(rows: Iterable[Row]) -> list[list[Row]]:
    """Return rows that differ only in the numbers of their names together, quantised ones first."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (template(row.name), row.shape, row.dtype, _becomes(row), _without_numbers(_why(row)))
        groups.setdefault(key, []).append(row)
    return sorted(groups.values(), key=lambda group: not group[0].decision.quantize)


@functools.lru_cache(maxsize=1 << 12)  # many rows have few reasons
def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "*", text)


def _becomes(row: Row) -> str:
    decision = row.decision
    if not decision.quantize:
        return f"stays {row.dtype}"
    profile = decision.profile or "MXFP4"
    return profile if decision.format == "mxfp4" else f"{decision.format} {profile}"


def _why(row: Row) -> str:
    if row.finding:
        return "PROBLEM, see below"
    decision = row.decision
    through = ""
    if decision.matched and decision.matched not in (row.name, module_of(row.name)):
        through = f", as {template(decision.matched)}"
    return decision.reason + through


def summary(plan: Plan) -> list[str]:
    """Return the totals and the findings, one sentence each."""
    before, after, quantized = plan.bytes_before, plan.bytes_after, len(plan.quantized)
    share = f" ({after / before:.1%})" if before else ""
    formats = Counter(row.decision.format for row in plan.quantized)
    kinds = sorted(formats, key=lambda name: (name != plan.config.format, name)) or [plan.config.format]
    counts = [f"{formats[name]} {name.upper()}" if len(kinds) > 1 else name.upper() for name in kinds]
    lines = [
        "",
        f"{plan.path}: {quantized} of {len(plan.rows)} tensors become {', '.join(counts)}, "
        f"profile {plan.config.resolved_profile()}",
        f"size: {disk_text(before)} -> {disk_text(after)}{share}",
    ]
    lines += [f"dialect {plan.dialect}: {plan.why}", plan.kinds]
    tp, ep = plan.parallel.tp, plan.parallel.ep
    if tp > 1 or ep > 1:
        lines.append(f"one rank at tp {tp}, ep {ep}: at most {disk_text(plan.rank_bytes)}")
    if (unit := plan.largest_unit) is not None:
        lines.append(
            f"peak while loading: at most {disk_text(plan.peak_bytes())}, "
            f"or {disk_text(plan.peak_bytes(device_copy=True))} where units are copied to a device "
            f"(largest unit: {disk_text(unit.unit_bytes)} of {unit.name})"
        )
    lines += [_fit_line(fit) for fit in plan.fits if not fit.refusal]
    lines += [f"note: {note}" for note in plan.notes]
    lines += beside_lines(plan.copied, plan.left)
    findings = plan.findings
    if findings:
        lines += ["", f"{len(findings)} finding{'s' if len(findings) > 1 else ''}:"]
        lines += [f"  {number}. {text}" for number, text in enumerate(findings, 1)]
    return lines


def _fit_line(fit: Fit) -> str:
    where = ", ".join(collapse(fit.modules))
    pads = (
        f", padded to n={fit.n} k={fit.k}, {disk_text(fit.padding_bytes)} more" if fit.padding_bytes else ""
    )
    why = "; ".join(filter(None, (fit.reason, fit.runs)))
    who = f"backend {fit.backend}" if fit.backend else "no backend"
    return f"{who}: {fit.question}{pads} ({why}) for {where}"


__all__ = ["grouped", "print_pipeline", "print_plan", "summary"]
