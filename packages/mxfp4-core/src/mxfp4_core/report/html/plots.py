"""Plots as inline SVG that stretch to the width of the page while dots, lines and letters keep their size.

The drawing is an SVG with ``preserveAspectRatio="none"`` over 1000 by 1000 units whose strokes do not scale; a dot
is a line of no length with a round or square cap. Labels are HTML beside it, placed in percent. So the same few
bytes serve a phone and a desktop, and a thousand dots take some ten kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

UNITS = 1000


@dataclass(frozen=True)
class Axis:
    """One axis, linear or logarithmic.

    Args:
        label: what it shows, with its unit.
        low: value at the start.
        high: value at the end.
        ticks: values and their labels.
        log: whether it is logarithmic.
    """

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Return the position of a value, 0 at the start and 1 at the end."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return min(1.0, max(0.0, (value - low) / (high - low)))


@dataclass(frozen=True)
class Series:
    """Dots of one kind.

    Args:
        kind: number of the kind, which decides colour and form.
        points: ``(x, y)`` of each dot.
        rows: number of the table row of each dot; empty if these are all rows of the kind, in their order.
    """

    kind: int
    points: Sequence[tuple[float, float]]
    rows: Sequence[int]


@dataclass(frozen=True)
class Plot:
    """One plot with its words.

    Args:
        key: short name, unique on the page.
        title: what it answers.
        lead: how to read it, one or two sentences.
        x: horizontal axis.
        y: vertical axis.
        drawings: SVG content for each variant, from `dots`, `line` or `bars`.
        descriptions: for each variant what is seen, in words, for those who do not see it.
        after: HTML below the plot.
        wide: whether it takes the whole width of the page.
    """

    key: str
    title: str
    lead: str
    x: Axis
    y: Axis
    drawings: Sequence[str]
    descriptions: Sequence[str]
    after: str = ""
    wide: bool = False

    def html(self) -> str:
        """Return the figure."""
        x_ticks = "".join(
            f'<span style="left:{self.x.place(value) * 100:.4g}%">{escape(text)}</span>'
            for value, text in self.x.ticks
        )
        y_ticks = "".join(
            f'<span style="bottom:{self.y.place(value) * 100:.4g}%">{escape(text)}</span>'
            for value, text in self.y.ticks
        )
        drawings = "".join(
            f'<svg class="v v{variant}" viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none" role="img" '
            f'aria-labelledby="{self.key}t{variant} {self.key}d{variant}">'
            f'<title id="{self.key}t{variant}">{escape(self.title)}</title>'
            f'<desc id="{self.key}d{variant}">{escape(description)}</desc>'
            f'<path class="grid" d="{self._grid()}"/>{drawing}</svg>'
            for variant, (drawing, description) in enumerate(
                zip(self.drawings, self.descriptions, strict=True)
            )
        )
        return (
            f'<figure class="card{" wide" * self.wide}" id="{self.key}"><figcaption><h2>{escape(self.title)}</h2>'
            f"<p>{escape(self.lead)}</p></figcaption>"
            f'<div class="plot"><div class="ylabel">{escape(self.y.label)}</div>'
            f'<div class="yticks" aria-hidden="true">{y_ticks}</div>'
            f'<div class="area" data-plot="{self.key}">{drawings}</div>'
            f'<div class="xticks" aria-hidden="true">{x_ticks}</div>'
            f'<div class="xlabel">{escape(self.x.label)}</div></div>{self.after}</figure>'
        )

    def _grid(self) -> str:
        lines = (f"M0 {UNITS - round(self.y.place(value) * UNITS)}h{UNITS}" for value, _ in self.y.ticks)
        return "".join(lines)


def dots(series: Sequence[Series], x: Axis, y: Axis) -> str:
    """Draw one path per series; a ring is a dot with a thinner one in the colour of the paper on top."""
    parts: list[str] = []
    for each in series:
        if not each.points:
            continue
        data = _marks((round(x.place(a) * UNITS), UNITS - round(y.place(b) * UNITS)) for a, b in each.points)
        rows = f' data-rows="{" ".join(map(str, each.rows))}"' if each.rows else ""
        parts.append(f'<path class="k k{each.kind}" data-k="{each.kind}"{rows} d="{data}"/>')
        if each.kind in HOLLOW:
            parts.append(f'<path class="hole k{each.kind}" data-k="{each.kind}" d="{data}"/>')
    return "".join(parts)


HOLLOW = frozenset({2, 3, 6})
"""Kinds whose form is a ring; page.css has colours and caps."""


def _marks(places: Iterable[tuple[int, int]]) -> str:
    # Steps from dot to dot are shorter than places; z closes a line of no length, which draws its cap alone.
    parts: list[str] = []
    last = (0, 0)
    for place in places:
        across, down = place[0] - last[0], place[1] - last[1]
        parts.append(f"m{across}{'' if down < 0 else ' '}{down}z")
        last = place
    return "".join(parts)


def line(points: Sequence[tuple[float, float]], rows: Sequence[int], x: Axis, y: Axis) -> str:
    """Draw a line with a dot on each point; points closer than a dot to the one before are left out.

    Args:
        points: ``(x, y)`` in the order of the line.
        rows: number of the table row of each point, -1 for none.
        x: horizontal axis.
        y: vertical axis.
    """
    places: list[tuple[int, int]] = []
    found: list[int] = []
    for number, ((a, b), row) in enumerate(zip(points, rows, strict=True)):
        place = round(x.place(a) * UNITS), UNITS - round(y.place(b) * UNITS)
        if not places or number == len(points) - 1 or math.dist(place, places[-1]) >= _APART:
            places.append(place)
            found.append(row)
    path = "L".join(f"{a} {b}" for a, b in places)
    numbers = " ".join(map(str, found))
    return (
        f'<path class="line" d="M{path}"/><path class="k mark" data-rows="{numbers}" d="{_marks(places)}"/>'
    )


_APART = 8


def bars(values: Sequence[tuple[int, float]], notes: Sequence[str], x: Axis, y: Axis) -> str:
    """Draw one bar per value, each with its note."""
    width = UNITS / (x.high - x.low)
    parts: list[str] = []
    for (place, value), note in zip(values, notes, strict=True):
        height = max(round(y.place(value) * UNITS), 2)
        left = round(x.place(place - 0.5) * UNITS + width * 0.08, 1)
        parts.append(
            f'<path class="bar" d="M{left:g} {UNITS}v{-height}h{width * 0.84:.4g}v{height}z">'
            f"<title>{escape(note)}</title></path>"
        )
    return "".join(parts)


def linear(label: str, values: Sequence[float], text: Callable[[float], str], *, zero: bool = False) -> Axis:
    """Return a linear axis that holds all values, with four to seven round ticks.

    Args:
        label: what it shows.
        values: what it must hold.
        text: how a tick is written.
        zero: whether it starts at zero.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    low = min(low, 0.0) if zero else low
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-300):  # no ticks would differ in print
        low, high = (low, low + 1.0) if zero else (low - 0.5, low + 0.5)
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple((number * step, text(number * step)) for number in range(first, last + 1))
    return Axis(label, first * step, last * step, ticks)


def logarithmic(label: str, values: Sequence[float], text: Callable[[float], str], *, base: int = 10) -> Axis:
    """Return a logarithmic axis that holds all positive values, with ticks at powers of the base."""
    positive = [value for value in values if value > 0] or [1.0]
    first = math.floor(math.log(min(positive), base) + 1e-9)
    last = max(first + 1, math.ceil(math.log(max(positive), base) - 1e-9))
    every = -(-(last - first) // 6)
    ticks = tuple(
        (float(base) ** power, text(float(base) ** power)) for power in range(first, last + 1, every)
    )
    return Axis(label, float(base) ** first, float(base) ** last, ticks, log=True)


__all__ = ["HOLLOW", "Axis", "Plot", "Series", "bars", "dots", "line", "linear", "logarithmic"]
