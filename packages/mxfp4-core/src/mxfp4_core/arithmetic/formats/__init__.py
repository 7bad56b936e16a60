"""Formats: a weight is a set of named parts, and one `Format` object says which.

``base`` has the protocol, one module each format; ``registry`` finds formats by name, those of other packages too:
``mxfp4_core.arithmetic.formats.get("mxfp8")``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.arithmetic.formats.registry import formats as formats
    from mxfp4_core.arithmetic.formats.registry import get as get

__all__ = ["formats", "get"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, {"formats": "registry", "get": "registry"})
