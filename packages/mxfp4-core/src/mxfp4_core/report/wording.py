"""Figures as people read them; one way for all renderers."""

from __future__ import annotations

import math

from mxfp4_core._text import BINARY_UNITS
from mxfp4_core.jobs.metrics import Metrics

NONE = "\u2013"
"""Shown where there is no number."""

_STATES = {"exact": "exact", "no_signal": "no signal", "nonfinite": "not finite"}


def decibels(metrics: Metrics) -> str:
    """Return the SQNR with two decimals, or in words why there is none.

    >>> decibels(Metrics(1, 100.0, 1.0)), decibels(Metrics(1, 0.0, 0.0))
    ('20.00', 'exact')
    """
    return number_db(metrics.sqnr_db) if metrics.state == "finite" else _STATES[metrics.state]


def number_db(value: float | None) -> str:
    """Return decibels with two decimals, a dash for None."""
    return NONE if value is None else f"{value:.2f}"


def percent(share: float) -> str:
    """Return a share in percent with three digits that count, four decimals at most.

    >>> percent(0.0), percent(0.0123), percent(0.5), percent(0.00012), percent(1e-9)
    ('0 %', '1.23 %', '50.0 %', '0.012 %', '< 0.0001 %')
    """
    value = share * 100
    if value == 0:
        return "0 %"
    if value < 0.0001:
        return "< 0.0001 %"
    digits = 1 if value >= 9.995 else 2 if value >= 0.0995 else 3 if value >= 0.00995 else 4
    return f"{value:.{digits}f} %"


def tick_percent(share: float) -> str:
    """Return a share for the label of an axis, as short as it is exact.

    >>> tick_percent(0.2), tick_percent(0.0125)
    ('20 %', '1.25 %')
    """
    return f"{share * 100:.6g} %"


def tick_size(count: float) -> str:
    """Return bytes for the label of an axis, as short as it is exact.

    >>> tick_size(4096), tick_size(1.5 * 2**20)
    ('4 KiB', '1.5 MiB')
    """
    unit = max(0, min(len(BINARY_UNITS) - 1, int(math.log2(max(count, 1))) // 10))
    return f"{count / 1024**unit:.6g} {BINARY_UNITS[unit]}"


def small(value: float | None) -> str:
    """Return a number with three digits that count, a dash for None.

    >>> small(0.0141234), small(0.0)
    ('0.0141', '0')
    """
    return NONE if value is None else f"{value:.3g}"


def shape(sizes: tuple[int, ...]) -> str:
    r"""Return a shape.

    >>> shape((8, 4096)) == "8\u00d74096", shape(())
    (True, 'scalar')
    """
    return "\u00d7".join(map(str, sizes)) or "scalar"


__all__ = ["NONE", "decibels", "number_db", "percent", "shape", "small", "tick_percent", "tick_size"]
