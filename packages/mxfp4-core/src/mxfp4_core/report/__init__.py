"""Reports: what quantising does to each tensor, as data, JSON, CSV, Markdown and one HTML page.

`measure` compares a quantised checkpoint with its source, `compare` says what several profiles would make
of a source. Fields and definitions are in docs/report.md.
"""

from __future__ import annotations

from mxfp4_core.jobs.metrics import Metrics
from mxfp4_core.report.measure import compare, measure
from mxfp4_core.report.model import Layer, Report, Spread

__all__ = ["Layer", "Metrics", "Report", "Spread", "compare", "measure"]
