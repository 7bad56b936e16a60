"""Sphinx settings: the pages are Markdown, written to read well on the code host too."""

from __future__ import annotations

project = "mxfp4"
copyright = "the mxfp4 authors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "mxfp4"
nitpicky = True
