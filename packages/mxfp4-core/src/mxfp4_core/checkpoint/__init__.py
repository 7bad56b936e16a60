"""Read and write checkpoints of safetensors files as streams: headers, index, manifest, staging, resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.checkpoint.adapters import is_adapter as is_adapter
    from mxfp4_core.checkpoint.ahead import ReadAhead as ReadAhead
    from mxfp4_core.checkpoint.ahead import Rows as Rows
    from mxfp4_core.checkpoint.cache import hub_name as hub_name
    from mxfp4_core.checkpoint.cache import local_path as local_path
    from mxfp4_core.checkpoint.header import read_header as read_header
    from mxfp4_core.checkpoint.layout import Layout as Layout
    from mxfp4_core.checkpoint.reader import Checkpoint as Checkpoint
    from mxfp4_core.checkpoint.reader import TensorInfo as TensorInfo
    from mxfp4_core.checkpoint.reader import open_checkpoint as open_checkpoint

_HOMES = {
    "Checkpoint": "reader",
    "TensorInfo": "reader",
    "open_checkpoint": "reader",
    "read_header": "header",
    "Layout": "layout",
    "is_adapter": "adapters",
    "hub_name": "cache",
    "local_path": "cache",
    "ReadAhead": "ahead",
    "Rows": "ahead",
}

__all__ = [
    "Checkpoint",
    "Layout",
    "ReadAhead",
    "Rows",
    "TensorInfo",
    "hub_name",
    "is_adapter",
    "local_path",
    "open_checkpoint",
    "read_header",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
