"""The report as one HTML page."""

from __future__ import annotations

from mxfp4_core.report.html.page import render_html

__all__ = ["render_html"]
