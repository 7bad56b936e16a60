"""What one rank of a parallel run holds of a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.parallel.ranges import Range as Range
    from mxfp4_core.parallel.ranges import Tail as Tail
    from mxfp4_core.parallel.ranges import expert_ranges as expert_ranges
    from mxfp4_core.parallel.ranges import legal_parts as legal_parts
    from mxfp4_core.parallel.ranges import merged_ranges as merged_ranges
    from mxfp4_core.parallel.ranges import qkv_ranges as qkv_ranges
    from mxfp4_core.parallel.ranges import shard_ranges as shard_ranges
    from mxfp4_core.parallel.shards import Parallel as Parallel
    from mxfp4_core.parallel.shards import Shard as Shard
    from mxfp4_core.parallel.shards import Split as Split
    from mxfp4_core.parallel.shards import shard_of as shard_of
    from mxfp4_core.parallel.shards import split_of as split_of

_HOMES = {
    "Range": "ranges",
    "Tail": "ranges",
    "expert_ranges": "ranges",
    "legal_parts": "ranges",
    "merged_ranges": "ranges",
    "qkv_ranges": "ranges",
    "shard_ranges": "ranges",
    "Parallel": "shards",
    "Shard": "shards",
    "Split": "shards",
    "shard_of": "shards",
    "split_of": "shards",
}

__all__ = [
    "Parallel",
    "Range",
    "Shard",
    "Split",
    "Tail",
    "expert_ranges",
    "legal_parts",
    "merged_ranges",
    "qkv_ranges",
    "shard_of",
    "shard_ranges",
    "split_of",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
