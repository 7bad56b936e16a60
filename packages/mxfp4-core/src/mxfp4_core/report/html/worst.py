"""The ranking at the top of the page: the tensors with the lowest SQNR, with the spread of their experts."""

from __future__ import annotations

from mxfp4_core.jobs.metrics import Metrics
from mxfp4_core.report.html.plots import Axis, linear
from mxfp4_core.report.html.scene import Scene
from mxfp4_core.report.html.tables import name_html, text
from mxfp4_core.report.model import Layer
from mxfp4_core.report.wording import decibels, number_db

_SHOWN = 12


def worst(scene: Scene) -> str:
    """Return a figure with the ranking of each variant; empty without a single number."""
    spreads = [end for layer in scene.report.layers for s in layer.spread.values() for end in (s.low, s.high)]
    values = scene.values(lambda metrics: metrics.sqnr_db) + [end for end in spreads if end is not None]
    if not values:
        return ""
    axis = linear("SQNR, dB", values, lambda value: f"{value:.6g}")
    ticks = "".join(
        f'<span style="left:{axis.place(at) * 100:.4g}%">{label}</span>' for at, label in axis.ticks
    )
    notes = " A line shows the range over the experts of a layer." if spreads else ""
    notes += " Small grey marks are the other rules." if len(scene.report.variants) > 1 else ""
    lists = "".join(
        f'<ol class="worst v v{number}">{_items(scene, variant, axis)}</ol>'
        for number, variant in enumerate(scene.report.variants)
    )
    return (
        '<figure class="card wide" id="worst"><figcaption><h2>Which layers hurt</h2>'
        f"<p>The lowest SQNR first.{notes}</p></figcaption>"
        f'{lists}<div class="worstticks" aria-hidden="true"><div class="xticks">{ticks}</div></div>'
        '<div class="xlabel">SQNR, dB: higher is better</div></figure>'
    )


def _items(scene: Scene, variant: str, axis: Axis) -> str:
    ranked = sorted(
        ((metrics.sqnr_db, row, layer, metrics) for row, layer, metrics in scene.shown(variant)),
        key=lambda each: (each[0] is not None, each[0] or 0.0, each[1]),
    )
    failed = [each for each in ranked if each[0] is None and each[3].state != "exact"]
    known = [each for each in ranked if each[0] is not None]
    return "".join(
        _item(scene, row, layer, m, variant, axis) for _, row, layer, m in (failed + known)[:_SHOWN]
    )


def _item(scene: Scene, row: int, layer: Layer, metrics: Metrics, variant: str, axis: Axis) -> str:
    marks, spread = "", layer.spread.get(variant)
    if spread is not None and spread.low is not None and spread.high is not None:
        left, right = axis.place(spread.low) * 100, axis.place(spread.high) * 100
        note = f"experts from {number_db(spread.low)} to {number_db(spread.high)} dB"
        marks += f'<i class="range" style="left:{left:.4g}%;width:{right - left:.4g}%" title="{note}"></i>'
    for other, found in layer.results.items():
        if other != variant and found.sqnr_db is not None:
            note = f"{text(other)}: {number_db(found.sqnr_db)} dB"
            marks += (
                f'<i class="other" style="left:{axis.place(found.sqnr_db) * 100:.4g}%" title="{note}"></i>'
            )
    if metrics.sqnr_db is not None:
        kind = scene.number(layer)
        marks += f'<i class="dot k{kind}" style="left:{axis.place(metrics.sqnr_db) * 100:.4g}%"></i>'
    return (
        f'<li><a href="#r{row}">{name_html(layer.name.removesuffix(".weight"))}</a>'
        f'<span class="track">{marks}</span><b>{decibels(metrics)}</b></li>'
    )


__all__ = ["worst"]
