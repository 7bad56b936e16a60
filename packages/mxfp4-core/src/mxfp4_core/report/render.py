"""The report as JSON, CSV, Markdown and as lines for a terminal."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mxfp4_core._text import short_size_text
from mxfp4_core.report.model import Layer, Report
from mxfp4_core.report.naming import printable
from mxfp4_core.report.wording import NONE, decibels, number_db, percent, shape, small

_TENSOR_COLUMNS = (
    "name", "kind", "layer", "dtype", "shape", "tensors", "decision", "reason", "bytes_before", "bytes_after",
)  # fmt: skip
_METRIC_COLUMNS = (
    "sqnr_db", "sqnr_state", "relative_squared_error", "saturated_share", "flushed_share", "max_abs_error", "values",
    "zeros", "saturated", "flushed", "nonfinite", "squared_signal", "squared_error", "scale_byte_min",
    "scale_byte_max",
)  # fmt: skip
_EXPERT_COLUMNS = ("experts", "sqnr_db_min", "sqnr_db_median", "sqnr_db_max", "worst_expert")
_TOTALS_HEAD = ("rule", "SQNR, dB", "median", "worst", "flushed", "clipped", "worst tensor")
_LAYERS_HEAD = (
    "tensor", "tensors", "SQNR, dB", "relative error", "flushed", "clipped", "largest error",
    "scales", "shape", "before", "after",
)  # fmt: skip
_TERMINAL_COLUMNS = 7
_FORMULA = ("=", "+", "-", "@")
_NAME = re.compile(r"[\w.*/-]*[._*/][\w.*/-]*[a-zA-Z][\w.*/-]*", re.ASCII)
_TERMINAL_ROWS = 10


def render_json(report: Report) -> str:
    """Return the report as JSON; no NaN, no infinity, ASCII only."""
    return json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n"


def render_csv(report: Report) -> str:
    """Return one line per tensor and variant, with a header; numbers in full precision, empty where there is none.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    experts = [f"experts_{name}" if name != "experts" else name for name in _EXPERT_COLUMNS]
    writer.writerow([*_TENSOR_COLUMNS, "variant", *_METRIC_COLUMNS, *experts])
    for layer in report.layers:
        data = layer.to_dict()
        results: dict[str, dict[str, Any]] = data.pop("results") or {"": {}}
        data["shape"] = "x".join(map(str, layer.shape))
        start = [_cell(data[name]) for name in _TENSOR_COLUMNS]
        for variant, metrics in results.items():
            spread = metrics.get("experts", {})
            values = [metrics.get(name) for name in _METRIC_COLUMNS]
            values += [spread.get(name) for name in _EXPERT_COLUMNS]
            writer.writerow([*start, _cell(variant), *map(_cell, values)])
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str):
        text = printable(value)
        return f"'{text}" if text.startswith(_FORMULA) else text
    return value


def render_markdown(report: Report) -> str:
    """Return the report for a model card or an issue: totals, the quantised tensors worst first, what was kept."""
    return "\n".join(_markdown(report)) + "\n"


def _markdown(report: Report) -> Iterator[str]:
    yield "# MXFP4 report"
    yield ""
    yield f"* source: {_md(report.source)}"
    if report.quantised is not None:
        yield f"* quantised: {_md(report.quantised)}"
    yield f"* size: {short_size_text(report.bytes_before)} before, {short_size_text(report.bytes_after)} after"
    for key in ("created", "command"):
        if report.environment.get(key):
            yield f"* {key}: {_md(str(report.environment[key]))}"
    versions = report.environment.get("versions", {})
    if versions:
        yield f"* versions: {', '.join(f'{name} {number}' for name, number in versions.items())}"
    if report.findings:
        yield from ("", f"## {len(report.findings)} finding(s)", "")
        yield from (f"* {_md(finding)}" for finding in report.findings)
    yield from ("", "## Totals", "")
    yield from _md_table(_TOTALS_HEAD, _totals(report))
    for variant in report.variants:
        yield from ("", f"## Quantised tensors, {_md(variant)}, worst first", "")
        yield from _md_table(_LAYERS_HEAD, [_layer_row(layer, variant) for layer in ranked(report, variant)])
    yield from ("", "## Kept tensors", "")
    yield from _md_table(("reason", "tensors", "size"), list(_kept(report)))


def _totals(report: Report) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for variant in report.variants:
        summary = report.summary(variant)
        total = summary.total
        rows.append((
            variant, decibels(total), number_db(summary.median), number_db(summary.worst_db),
            percent(total.flushed_share), percent(total.saturated_share), summary.worst or NONE,
        ))  # fmt: skip
    return rows


def ranked(report: Report, variant: str) -> list[Layer]:
    """Return the quantised layers: first those that are broken, then by rising SQNR, exact ones last."""
    order = {"nonfinite": -2.0, "no_signal": -1.0, "exact": float("inf")}

    def key(layer: Layer) -> float:
        metrics = layer.results[variant]
        return metrics.sqnr_db if metrics.sqnr_db is not None else order[metrics.state] * 1e6

    return sorted((layer for layer in report.quantised_layers if variant in layer.results), key=key)


def _layer_row(layer: Layer, variant: str) -> tuple[str, ...]:
    metrics = layer.results[variant]
    low, high = metrics.scale_range or (NONE, NONE)
    return (
        layer.name, str(layer.tensors), decibels(metrics), small(metrics.relative_error),
        percent(metrics.flushed_share), percent(metrics.saturated_share), small(metrics.max_error),
        f"{low} to {high}", shape(layer.shape), short_size_text(layer.bytes_before), short_size_text(layer.bytes_after),
    )  # fmt: skip


def _kept(report: Report) -> Iterator[tuple[str, ...]]:
    groups: dict[str, tuple[int, int]] = {}
    for layer in report.layers:
        if layer.decision == "kept":
            count, nbytes = groups.get(layer.reason, (0, 0))
            groups[layer.reason] = count + layer.tensors, nbytes + layer.bytes_after
    yield from ((reason, str(count), short_size_text(nbytes)) for reason, (count, nbytes) in groups.items())


def render_text(report: Report) -> str:
    """Return the totals, and of a single variant the worst tensors, aligned for a terminal."""
    before, after = short_size_text(report.bytes_before), short_size_text(report.bytes_after)
    lines = [f"{printable(report.source)}: {before}, {after} with MXFP4", ""]
    lines += _aligned(_TOTALS_HEAD, _totals(report))
    worst = ranked(report, report.variants[0]) if len(report.variants) == 1 else []
    if worst:
        rows = [_layer_row(layer, report.variants[0])[:_TERMINAL_COLUMNS] for layer in worst[:_TERMINAL_ROWS]]
        lines += ["", *_aligned(_LAYERS_HEAD[:_TERMINAL_COLUMNS], rows)]
        if len(worst) > len(rows):
            lines += [f"... and {len(worst) - len(rows)} better ones"]
    return "\n".join(lines) + "\n"


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [tuple(head), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]


def _md_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'--:|' * (len(head) - 1)}"
    yield from (f"| {' | '.join(map(_md, row))} |" for row in rows)


def _md(text: str) -> str:
    shown = printable(text)
    return f"`{shown}`" if _NAME.fullmatch(shown) else re.sub(r"([\\`*_{}\[\]<>|~#&!])", r"\\\1", shown)


__all__ = ["ranked", "render_csv", "render_json", "render_markdown", "render_text"]
