"""The report as data: one `Layer` per line, one `Metrics` per layer and variant, and the totals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mxfp4_core.jobs.metrics import Metrics, merge

SCHEMA = "mxfp4-report"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Spread:
    """SQNR over the experts of one layer, in dB; experts whose SQNR is no number are left out.

    Args:
        experts: number of experts, also those left out.
        low: smallest SQNR, None when no expert has one.
        median: median SQNR.
        high: largest SQNR.
        worst: number of the expert with the smallest SQNR.
    """

    experts: int
    low: float | None = None
    median: float | None = None
    high: float | None = None
    worst: int | None = None

    @classmethod
    def of(cls, experts: Mapping[int, Metrics]) -> Spread:
        """Summarise the metrics of all experts, by expert number."""
        found = {number: value for number, each in experts.items() if (value := each.sqnr_db) is not None}
        if not found:
            return cls(len(experts))
        worst = min(found, key=lambda number: (found[number], number))
        return cls(len(experts), found[worst], statistics.median(found.values()), max(found.values()), worst)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "experts": self.experts,
            "sqnr_db_min": self.low,
            "sqnr_db_median": self.median,
            "sqnr_db_max": self.high,
            "worst_expert": self.worst,
        }


@dataclass(frozen=True)
class Layer:
    """One line of the report: a tensor, or the same tensor of all experts of a layer.

    Args:
        name: name in the source; ``*`` stands for the expert number.
        kind: kind of tensor, for example ``q_proj`` or ``experts.down_proj``.
        index: number of the layer, None outside of layers.
        dtype: dtype of the source, in safetensors words.
        shape: shape of one tensor of the source.
        tensors: number of tensors of the source in this line.
        decision: ``quantised`` or ``kept``.
        reason: why, as far as it is known.
        bytes_before: bytes in the source.
        bytes_after: bytes of codes and scales, or of the kept tensor.
        results: by variant. A kept tensor has none, unless it was stored with other values than the source
            has.
        spread: by variant, for layers of experts.
    """

    name: str
    kind: str
    index: int | None
    dtype: str
    shape: tuple[int, ...]
    tensors: int
    decision: Literal["quantised", "kept"]
    reason: str
    bytes_before: int
    bytes_after: int
    results: Mapping[str, Metrics] = field(default_factory=dict[str, Metrics])
    spread: Mapping[str, Spread] = field(default_factory=dict[str, Spread])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        results = {variant: metrics.to_dict() for variant, metrics in self.results.items()}
        for variant, spread in self.spread.items():
            results[variant]["experts"] = spread.to_dict()
        return {
            "name": self.name,
            "kind": self.kind,
            "layer": self.index,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "tensors": self.tensors,
            "decision": self.decision,
            "reason": self.reason,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "results": results,
        }


@dataclass(frozen=True)
class Summary:
    """Totals of one variant over the quantised layers.

    Args:
        variant: name of the profile.
        total: all quantised values together.
        median: median of the layers' SQNR in dB, None without any.
        worst: name of the layer with the smallest SQNR.
        worst_db: its SQNR.
    """

    variant: str
    total: Metrics
    median: float | None
    worst: str | None
    worst_db: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "sqnr_db_median_of_layers": self.median,
            "worst_layer": self.worst,
            "worst_sqnr_db": self.worst_db,
            **self.total.to_dict(),
        }


@dataclass(frozen=True)
class Report:
    """Per-layer error of a quantised checkpoint, or of what several rules would make of a source.

    Args:
        mode: ``measured``: a quantised checkpoint against its source. ``compared``: what each variant would
            give.
        source: path of the high-precision checkpoint.
        quantised: path of the quantised checkpoint, None when compared.
        variants: names of the profiles; exactly one when measured (``unknown`` if the file does not say).
        layers: every tensor of the source, in order of name with numbers counted up.
        findings: what a reader must know before trusting the figures: missing, differing or non-finite
            tensors.
        environment: date, command, machine and versions.
    """

    mode: Literal["measured", "compared"]
    source: str
    quantised: str | None
    variants: tuple[str, ...]
    layers: tuple[Layer, ...]
    findings: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def quantised_layers(self) -> tuple[Layer, ...]:
        """The lines that are quantised."""
        return tuple(layer for layer in self.layers if layer.decision == "quantised")

    @property
    def bytes_before(self) -> int:
        """Bytes of all tensors in the source."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Bytes of all tensors after quantising."""
        return sum(layer.bytes_after for layer in self.layers)

    def summary(self, variant: str) -> Summary:
        """Return the totals of one variant."""
        layers = [layer for layer in self.quantised_layers if variant in layer.results]
        known = [(db, layer.name) for layer in layers if (db := layer.results[variant].sqnr_db) is not None]
        worst_db, worst = min(known, default=(None, None))
        median = statistics.median(db for db, _ in known) if known else None
        return Summary(variant, merge(layer.results[variant] for layer in layers), median, worst, worst_db)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; field by field in docs/report.md. No value is NaN or infinite."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "mode": self.mode,
            "source": self.source,
            "quantised": self.quantised,
            **self.environment,
            "variants": list(self.variants),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "findings": list(self.findings),
            "summary": {variant: self.summary(variant).to_dict() for variant in self.variants},
            "tensors": [layer.to_dict() for layer in self.layers],
        }


__all__ = ["SCHEMA", "SCHEMA_VERSION", "Layer", "Report", "Spread", "Summary"]
