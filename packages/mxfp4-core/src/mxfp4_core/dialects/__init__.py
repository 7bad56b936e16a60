"""The public dialects of MXFP4 checkpoints: what they hold, and how each weight is made from it.

``base`` has the protocol, ``recipes`` the byte transforms, ``registry`` finds dialects by name or by looking at a
checkpoint; then one module each. Adding one is one module and one entry point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.dialects.base import Contents as Contents
    from mxfp4_core.dialects.base import Description as Description
    from mxfp4_core.dialects.base import Dialect as Dialect
    from mxfp4_core.dialects.base import Entry as Entry
    from mxfp4_core.dialects.beside import Beside as Beside
    from mxfp4_core.dialects.beside import Narrow as Narrow
    from mxfp4_core.dialects.default import default_for as default_for
    from mxfp4_core.dialects.joins import concat as concat
    from mxfp4_core.dialects.joins import interleave as interleave
    from mxfp4_core.dialects.joins import stack as stack
    from mxfp4_core.dialects.native import NATIVE as NATIVE
    from mxfp4_core.dialects.pairs import check_parts as check_parts
    from mxfp4_core.dialects.pairs import contradiction as contradiction
    from mxfp4_core.dialects.pairs import find_entries as find_entries
    from mxfp4_core.dialects.pairs import match_parts as match_parts
    from mxfp4_core.dialects.pairs import name_list as name_list
    from mxfp4_core.dialects.pairs import nothing as nothing
    from mxfp4_core.dialects.raw import Bytes as Bytes
    from mxfp4_core.dialects.recipes import Recipe as Recipe
    from mxfp4_core.dialects.registry import detect as detect
    from mxfp4_core.dialects.registry import get as get
    from mxfp4_core.dialects.registry import identify as identify
    from mxfp4_core.dialects.registry import names as names
    from mxfp4_core.dialects.registry import read as read
    from mxfp4_core.dialects.source import Source as Source

_HOMES = {
    "NATIVE": "native",
    "Contents": "base",
    "Description": "base",
    "Dialect": "base",
    "Entry": "base",
    "Beside": "beside",
    "Narrow": "beside",
    "default_for": "default",
    "concat": "joins",
    "interleave": "joins",
    "stack": "joins",
    "check_parts": "pairs",
    "contradiction": "pairs",
    "find_entries": "pairs",
    "match_parts": "pairs",
    "name_list": "pairs",
    "nothing": "pairs",
    "Bytes": "raw",
    "Recipe": "recipes",
    "detect": "registry",
    "get": "registry",
    "identify": "registry",
    "names": "registry",
    "read": "registry",
    "Source": "source",
}

__all__ = [
    "NATIVE",
    "Beside",
    "Bytes",
    "Contents",
    "Description",
    "Dialect",
    "Entry",
    "Narrow",
    "Recipe",
    "Source",
    "check_parts",
    "concat",
    "contradiction",
    "default_for",
    "detect",
    "find_entries",
    "get",
    "identify",
    "interleave",
    "match_parts",
    "name_list",
    "names",
    "nothing",
    "read",
    "stack",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
