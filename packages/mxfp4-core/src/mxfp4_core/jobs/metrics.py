"""Error of some quantised values as numbers, with every case in which a ratio is no number spelled out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["finite", "exact", "no_signal", "nonfinite"]


@dataclass(frozen=True)
class Metrics:
    """What quantising did to some values.

    Args:
        values: number of values compared, padding not counted.
        signal: sum of ``w**2`` over the finite values of the source.
        noise: sum of ``(w - d)**2`` with ``d`` the stored value.
        zeros: values of the source that are zero.
        saturated: values with ``|w| > 6 * scale``, clipped to the largest magnitude.
        flushed: values that are not zero in the source and are zero in MXFP4.
        nonfinite: pairs of which one is NaN or infinite; they take no part in any other number.
        max_error: largest ``|w - d|``.
        histogram: number of blocks per scale byte.
    """

    values: int
    signal: float
    noise: float
    zeros: int = 0
    saturated: int = 0
    flushed: int = 0
    nonfinite: int = 0
    max_error: float = 0.0
    histogram: Mapping[int, int] = field(default_factory=dict[int, int])

    @property
    def state(self) -> State:
        """Say whether the SQNR is a number (``finite``) and if not, why.

        ``exact``: no error at all, the ratio is infinite (also for a tensor of zeros, or of no values).
        ``no_signal``: the source is zero and the stored values are not. ``nonfinite``: NaN or infinity on
        either side.
        """
        if self.nonfinite:
            return "nonfinite"
        if self.noise == 0.0:
            return "exact"
        return "finite" if self.signal > 0.0 else "no_signal"

    @property
    def sqnr_db(self) -> float | None:
        """SQNR in dB, ``10 * log10(signal / noise)``; None unless `state` is finite."""
        # The difference of logarithms cannot overflow where the quotient would.
        return 10.0 * (math.log10(self.signal) - math.log10(self.noise)) if self.state == "finite" else None

    @property
    def relative_error(self) -> float | None:
        """Squared error per squared signal: 0 when exact, None without a signal or with nonfinite values."""
        return {"finite": self.noise / (self.signal or 1.0), "exact": 0.0}.get(self.state)

    @property
    def saturated_share(self) -> float:
        """Saturated values per value."""
        return self.saturated / self.values if self.values else 0.0

    @property
    def flushed_share(self) -> float:
        """Values flushed to zero per value."""
        return self.flushed / self.values if self.values else 0.0

    @property
    def scale_range(self) -> tuple[int, int] | None:
        """Smallest and largest scale byte, None without blocks."""
        return (min(self.histogram), max(self.histogram)) if self.histogram else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; where a ratio is no number it is None and ``sqnr_state`` says why."""
        low, high = self.scale_range or (None, None)
        return {
            "sqnr_db": self.sqnr_db,
            "sqnr_state": self.state,
            "relative_squared_error": self.relative_error,
            "saturated_share": self.saturated_share,
            "flushed_share": self.flushed_share,
            "max_abs_error": self.max_error,
            "values": self.values,
            "zeros": self.zeros,
            "saturated": self.saturated,
            "flushed": self.flushed,
            "nonfinite": self.nonfinite,
            "squared_signal": self.signal,
            "squared_error": self.noise,
            "scale_byte_min": low,
            "scale_byte_max": high,
            "scale_byte_histogram": {str(byte): count for byte, count in sorted(self.histogram.items())},
        }


def merge(parts: Iterable[Metrics]) -> Metrics:
    """Return the metrics of all parts together; exact for the counts, one rounding for the sums."""
    parts = list(parts)
    histogram: dict[int, int] = {}
    for part in parts:
        for byte, count in part.histogram.items():
            histogram[byte] = histogram.get(byte, 0) + count
    return Metrics(
        values=sum(part.values for part in parts),
        signal=math.fsum(part.signal for part in parts),
        noise=math.fsum(part.noise for part in parts),
        zeros=sum(part.zeros for part in parts),
        saturated=sum(part.saturated for part in parts),
        flushed=sum(part.flushed for part in parts),
        nonfinite=sum(part.nonfinite for part in parts),
        max_error=max((part.max_error for part in parts), default=0.0),
        histogram=dict(sorted(histogram.items())),
    )


__all__ = ["Metrics", "State", "merge"]
