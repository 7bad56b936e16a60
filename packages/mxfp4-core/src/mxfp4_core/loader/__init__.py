"""Quantise while an engine loads, with the engine's own loaders.

An engine's loader ends in one copy of a narrowed source into a view of its parameter. `LoadSession.wrap` runs that
loader against a stand-in on the meta device, catches the copy, reads from the view where the piece belongs, and
quantises the source straight into the real codes and scales. So sharding stays the engine's business, no parameter
ever exists in high precision, and the unit of work is what the engine copies. ``docs/loading.md`` has the drawing.
"""

from __future__ import annotations

from mxfp4_core.loader.regions import Region
from mxfp4_core.loader.session import LoadSession
from mxfp4_core.loader.target import QuantTarget

__all__ = ["LoadSession", "QuantTarget", "Region"]
