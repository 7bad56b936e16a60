"""The tables of the page: every tensor, the totals of each variant, the best tensors to keep, the worst ones."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mxfp4_core._text import short_size_text
from mxfp4_core.jobs.metrics import Metrics
from mxfp4_core.report.html.scene import Scene
from mxfp4_core.report.model import Layer, Report, Spread
from mxfp4_core.report.naming import printable
from mxfp4_core.report.trades import Trade
from mxfp4_core.report.wording import NONE, decibels, number_db, percent, shape, small

_BEST = 5


def text(value: str) -> str:
    """Return text from a file, made visible and safe inside of HTML."""
    return escape(printable(value))


def name_html(name: str) -> str:
    """Return a name for HTML that may break after its dots."""
    return text(name).replace(".", ".<wbr>")


def details(report: Report) -> list[str]:
    """Return the columns that a report of several variants shows for the chosen one only."""
    names = ["Flushed", "Clipped"]
    if len(report.variants) == 1:
        names += ["Relative error", "Largest error", "Scale bytes"]
    return [*names, "Experts, dB"] if any(layer.spread for layer in report.layers) else names


def tensor_table(scene: Scene) -> str:
    """Return the table of all tensors; end tags that HTML lets out are left out, a third of the page."""
    report = scene.report
    single = len(report.variants) == 1
    heads = ["Tensor", *(["SQNR, dB"] if single else [f"SQNR, dB: {each}" for each in report.variants])]
    heads += [head for _ in report.variants for head in details(report)]
    heads += ["Stored as", "Shape", "Before", "After", "Why kept"]
    head = "".join(f"<th scope=col><button>{text(each)}</button>" for each in heads)
    columns = details(report)
    body = "".join(_row(scene, row, layer, columns) for row, layer in enumerate(report.layers))
    return f"<table id=tensors><thead><tr>{head}<tbody>{body}</table>"


def _row(scene: Scene, row: int, layer: Layer, columns: Sequence[str]) -> str:
    kept = layer.decision == "kept"
    count = f" <small>({layer.tensors} tensors)</small>" if layer.tensors > 1 else ""
    found = [layer.results.get(variant) for variant in scene.report.variants]
    cells = ["" if metrics is None else decibels(metrics) for metrics in found]
    for variant, metrics in zip(scene.report.variants, found, strict=True):
        shown = _details(metrics, layer.spread.get(variant))
        cells += [shown.get(column, "") for column in columns]
    cells += [
        text(layer.dtype) if kept else "MXFP4",
        shape(layer.shape),
        short_size_text(layer.bytes_before),
        short_size_text(layer.bytes_after),
        text(layer.reason) if kept else "",
    ]
    kind = "" if kept else f" data-k={scene.number(layer)}"
    return (
        f"<tr id=r{row}{kind}><th scope=row>{text(layer.name)}{count}"
        + "".join(f"<td>{cell}" for cell in cells)
        + "\n"
    )


def _details(metrics: Metrics | None, spread: Spread | None) -> dict[str, str]:
    if metrics is None:
        return {}
    low, high = metrics.scale_range or (None, None)
    return {
        "Flushed": percent(metrics.flushed_share),
        "Clipped": percent(metrics.saturated_share),
        "Relative error": small(metrics.relative_error),
        "Largest error": small(metrics.max_error),
        "Scale bytes": "" if low is None else f"{low} to {high}",
        "Experts, dB": "" if spread is None else _spread(spread),
    }


def _spread(spread: Spread) -> str:
    if spread.low is None:
        return f"{spread.experts} experts"
    return f"{number_db(spread.low)} (no. {spread.worst}) to {number_db(spread.high)}"


def variant_table(report: Report) -> str:
    """Return the totals of each variant, the best of each column marked by word and weight."""
    summaries = [report.summary(variant) for variant in report.variants]
    columns = (
        ("All weights, dB", [each.total.sqnr_db for each in summaries], max, number_db),
        ("Median tensor, dB", [each.median for each in summaries], max, number_db),
        ("Worst tensor, dB", [each.worst_db for each in summaries], max, number_db),
        ("Flushed", [each.total.flushed_share for each in summaries], min, percent),
        ("Clipped", [each.total.saturated_share for each in summaries], min, percent),
    )
    head = "".join(f"<th scope=col>{name}</th>" for name, *_ in columns)
    rows: list[str] = []
    for place, variant in enumerate(report.variants):
        cells: list[str] = []
        for _, values, choose, write in columns:
            value, known = values[place], [each for each in values if each is not None]
            best = value is not None and value == choose(known)
            shown = NONE if value is None else write(value)
            cells.append(f"<td>{f'<b>{shown}</b> <small>best</small>' if best else shown}</td>")
        rows.append(f"<tr><th scope=row>{text(variant)}</th>{''.join(cells)}</tr>")
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Totals of each rule"><table class="totals">'
        f"<thead><tr><th scope=col>Rule</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def trade_table(steps: Sequence[Sequence[Trade]]) -> str:
    """Return for each variant the first steps of the trade."""
    parts: list[str] = []
    for number, found in enumerate(steps):
        rows = "".join(
            f"<tr><th scope=row>{name_html(step.layer.name)}</th><td>+{short_size_text(step.added)}</td>"
            f"<td>{percent(step.share_left)}</td></tr>"
            for step in found[:_BEST]
        )
        parts.append(
            f'<table class="small v v{number}"><caption>Best tensors to keep</caption><thead><tr>'
            "<th scope=col>Tensor</th><th scope=col>Adds</th><th scope=col>Error left</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )
    return "".join(parts)


__all__ = ["details", "name_html", "tensor_table", "text", "trade_table", "variant_table"]
