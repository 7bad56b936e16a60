"""The plots of a report: which layers hurt, what is clipped and lost, error against size, the scales in use."""

from __future__ import annotations

import math

from mxfp4_core._text import BINARY_UNITS, short_size_text
from mxfp4_core.arithmetic.format import E8M0_BIAS, E8M0_NAN
from mxfp4_core.jobs.metrics import Metrics
from mxfp4_core.report.html.plots import Axis, Plot, bars, dots, line, linear, logarithmic
from mxfp4_core.report.html.scene import Scene, Value
from mxfp4_core.report.html.tables import trade_table
from mxfp4_core.report.model import Layer
from mxfp4_core.report.naming import printable
from mxfp4_core.report.trades import trades
from mxfp4_core.report.wording import number_db, percent, tick_percent, tick_size


def plots(scene: Scene) -> list[Plot]:
    """Return all plots of the page in their order; none for a report without quantised layers."""
    if not scene.kinds:
        return []
    decibel_axis = linear("SQNR, dB", scene.values(lambda metrics: metrics.sqnr_db), _plain)
    flushed_axis = _share_axis("flushed to zero", scene, lambda metrics: metrics.flushed_share)
    clipped_axis = _share_axis("clipped", scene, lambda metrics: metrics.saturated_share)
    return [
        _by_layer(
            scene,
            ("sqnr", "SQNR by layer", "Signal to quantisation noise of each tensor. Low is worse."),
            decibel_axis,
            lambda metrics: metrics.sqnr_db,
        ),
        _error_by_size(scene),
        _trade(scene),
        _by_layer(
            scene,
            ("flushed", "Flushed to zero", "Share of values that were not zero and became zero."),
            flushed_axis,
            lambda metrics: metrics.flushed_share,
        ),
        _by_layer(
            scene,
            ("saturated", "Clipped", "Share of values above six times their scale, which are cut to it."),
            clipped_axis,
            lambda metrics: metrics.saturated_share,
        ),
        *_scales(scene),
    ]


def _by_layer(scene: Scene, words: tuple[str, str, str], y: Axis, value: Value) -> Plot:
    x = _layer_axis(scene)

    def place(layer: Layer, metrics: Metrics) -> tuple[float, float] | None:
        found = value(metrics)
        return None if found is None else (scene.x(layer), found)

    def describe(variant: str) -> str:
        known = [(value(metrics), layer.name) for _, layer, metrics in scene.shown(variant)]
        found = [(each, name) for each, name in known if each is not None]
        if not found:
            return "No layer has a number here."
        write = number_db if words[0] == "sqnr" else percent
        ends = [f"{write(each)} in {printable(name)}" for each, name in (min(found), max(found))]
        return f"{len(found)} tensors, from {ends[0]} to {ends[1]}. {_TABLE}"

    variants = scene.report.variants
    drawings = [dots(scene.series(variant, place), x, y) for variant in variants]
    return Plot(*words, x, y, drawings, [describe(variant) for variant in variants], wide=words[0] == "sqnr")


def _error_by_size(scene: Scene) -> Plot:
    variants = scene.report.variants
    totals = {variant: scene.report.summary(variant).total.noise or 1.0 for variant in variants}
    shares = [m.noise / totals[variant] for variant in variants for _, _, m in scene.shown(variant)]
    sizes = [layer.bytes_after for layer in scene.report.quantised_layers]
    x = logarithmic("size in MXFP4", sizes, tick_size, base=2)
    y = logarithmic("share of the squared error", shares, tick_percent)

    def draw(variant: str) -> str:
        def place(layer: Layer, metrics: Metrics) -> tuple[float, float] | None:
            # Tensors of different kinds are often equally large: a few percent to the side make them visible.
            shifted = layer.bytes_after * 1.02 ** (scene.number(layer) - 3)
            return (shifted, metrics.noise / totals[variant]) if metrics.noise else None

        return dots(scene.series(variant, place), x, y)

    def describe(variant: str) -> str:
        found = [(m.noise / totals[variant], layer.name) for _, layer, m in scene.shown(variant)]
        share, name = max(found, default=(0.0, "none"))
        return f"The largest part, {percent(share)}, comes from {printable(name)}. {_TABLE}"

    words = "size", "Error against size", "What each tensor adds to the squared error of all weights."
    return Plot(*words, x, y, [draw(each) for each in variants], [describe(each) for each in variants])


def _trade(scene: Scene) -> Plot:
    report = scene.report
    rows = {id(layer): row for row, layer in enumerate(report.layers)}
    steps = {variant: trades(report.layers, variant) for variant in report.variants}
    start = report.bytes_after
    unit, factor = _unit(report.bytes_before)
    ends = [start, *(start + found[-1].total_added for found in steps.values() if found)]
    x = linear(f"size of the model, {unit}", [end / factor for end in ends], _plain)
    y = linear("squared error left", [0.0, 1.0], tick_percent, zero=True)

    def draw(variant: str) -> str:
        points = [((start + step.total_added) / factor, step.share_left) for step in steps[variant]]
        found = [rows[id(step.layer)] for step in steps[variant]]
        return line([(start / factor, 1.0), *points], [-1, *found], x, y)

    def describe(variant: str) -> str:
        half = next((step for step in steps[variant] if step.share_left <= 0.5), None)
        if half is None:
            return "Nothing to gain: no tensor has an error, or none would grow."
        return f"Half of the squared error is gone for {short_size_text(half.total_added)} more."

    words = (
        "trade",
        "What keeping layers would buy",
        "Squared error left when tensors stay in high precision, those first that remove most error per byte.",
    )
    drawings, notes = [draw(each) for each in report.variants], [describe(each) for each in report.variants]
    return Plot(*words, x, y, drawings, notes, trade_table(list(steps.values())))


def _scales(scene: Scene) -> list[Plot]:
    variants = scene.report.variants
    totals = {variant: scene.report.summary(variant).total.histogram for variant in variants}
    used = sorted({byte for histogram in totals.values() for byte in histogram})
    if not used:  # all tensors are empty
        return []
    low, high = used[0], used[-1]
    step = -(-(high - low + 1) // 8)
    ticks = tuple((float(byte), _power(byte)) for byte in range(low, high + 1, step))
    x = Axis("scale byte, as a power of two", low - 0.75, high + 0.75, ticks)
    blocks = {variant: sum(histogram.values()) for variant, histogram in totals.items()}
    shares = {v: [(byte, n / blocks[v]) for byte, n in totals[v].items()] for v in variants}
    y = linear(
        "share of blocks", [share for found in shares.values() for _, share in found], tick_percent, zero=True
    )

    def draw(variant: str) -> str:
        notes = [
            f"byte {byte}, {_power(byte)}: {percent(share)} of blocks" for byte, share in shares[variant]
        ]
        return bars(shares[variant], notes, x, y)

    def describe(variant: str) -> str:
        common, share = max(shares[variant], key=lambda each: each[1])
        return f"Bytes {low} to {high}; most common is {common} ({_power(common)}) with {percent(share)}."

    words = "scales", "Scales in use", "How often each scale byte occurs, over all blocks of 32 values."
    notes = [describe(each) for each in variants]
    return [Plot(*words, x, y, [draw(each) for each in variants], notes, wide=True)]


_TABLE = "Every value is in the table below."


def _layer_axis(scene: Scene) -> Axis:
    numbers = [layer.index for layer in scene.report.quantised_layers if layer.index is not None]
    outside = any(layer.index is None for layer in scene.report.quantised_layers)
    low, high = (-1 if outside else min(numbers, default=0)), max(numbers, default=0)
    step = next(each for each in (1, 2, 4, 5, 10, 20, 50, 100, 1 << 40) if (high - low) / each <= 12)
    first = min(numbers, default=0)
    ticks = [(float(number), str(number)) for number in range(first + -first % step, high + 1, step)]
    if outside:
        ticks = [(-1.0, "none"), *ticks]
    return Axis("layer", low - 0.5, high + 0.5, tuple(ticks))


def _share_axis(label: str, scene: Scene, value: Value) -> Axis:
    return linear(f"{label}, share of values", scene.values(value), tick_percent, zero=True)


def _unit(count: int) -> tuple[str, float]:
    power = max(0, min(4, int(math.log2(max(count, 1)) // 10)))
    return BINARY_UNITS[power], 1024.0**power


def _power(byte: int) -> str:
    exponent = str(byte - E8M0_BIAS).translate(_SUPERSCRIPT)
    return "NaN" if byte == E8M0_NAN else f"2{exponent}"


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _plain(value: float) -> str:
    return f"{value:.6g}"


__all__ = ["plots"]
