"""What all plots and the table of a page share: which layers are shown, their kinds and their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from mxfp4_core.jobs.metrics import Metrics
from mxfp4_core.report.html.plots import Series
from mxfp4_core.report.model import Layer, Report

KINDS = 7
"""Kinds with a colour and form of their own; all others look like number 7."""

Value = Callable[[Metrics], float | None]


@dataclass(frozen=True)
class Scene:
    """A report with numbers for its kinds.

    Args:
        report: the report.
        kinds: names of the kinds, in the order of their numbers.
    """

    report: Report
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, report: Report) -> Scene:
        """Number the kinds of a report: the most frequent ones first, those in the order of the model."""
        names = [layer.kind for layer in report.quantised_layers]
        known = list(dict.fromkeys(names))
        frequent = sorted(known, key=lambda kind: -names.count(kind))
        own = sorted(frequent[:KINDS], key=known.index)
        return cls(report, (*own, *frequent[KINDS:]))

    def number(self, layer: Layer) -> int:
        """Return the number of a layer's kind."""
        return min(self.kinds.index(layer.kind), KINDS)

    def legend(self) -> list[tuple[int, str]]:
        """Return number and name of what the plots tell apart."""
        own = list(enumerate(self.kinds[:KINDS]))
        rest = self.kinds[KINDS:]
        return [*own, (KINDS, rest[0] if len(rest) == 1 else f"{len(rest)} other kinds")] if rest else own

    def shown(self, variant: str) -> list[tuple[int, Layer, Metrics]]:
        """Return table row, layer and metrics of every quantised layer with results for a variant."""
        return [
            (row, layer, layer.results[variant])
            for row, layer in enumerate(self.report.layers)
            if layer.decision == "quantised" and variant in layer.results
        ]

    def values(self, value: Value) -> list[float]:
        """Return the values of all shown layers of all variants, those that are numbers."""
        found = [value(metrics) for variant in self.report.variants for _, _, metrics in self.shown(variant)]
        return [each for each in found if each is not None]

    def x(self, layer: Layer) -> float:
        """Return where a layer stands on an axis of layers: its number, or -1 outside of the layers.

        The kinds of one layer are moved apart, so that they do not hide each other.
        """
        count = min(len(self.kinds), KINDS + 1)
        shift = 0.64 * ((self.number(layer) + 0.5) / count - 0.5)
        return (-1 if layer.index is None else layer.index) + shift

    def series(
        self, variant: str, place: Callable[[Layer, Metrics], tuple[float, float] | None]
    ) -> list[Series]:
        """Return the dots of a variant by kind; layers whose place is None are left out."""
        found: dict[int, list[tuple[tuple[float, float], int]]] = {}
        for row, layer, metrics in self.shown(variant):
            if (point := place(layer, metrics)) is not None:
                found.setdefault(self.number(layer), []).append((point, row))
        sizes = Counter(self.number(layer) for layer in self.report.quantised_layers)
        return [
            Series(kind, [at for at, _ in dots], [row for _, row in dots] if len(dots) < sizes[kind] else [])
            for kind, dots in sorted(found.items())
        ]


__all__ = ["KINDS", "Scene", "Value"]
