"""Open the checkpoint of a job: one that is quantised, or one that is not, and say so where it is the other kind."""

from __future__ import annotations

from pathlib import Path

from mxfp4_core import dialects
from mxfp4_core.checkpoint.reader import Checkpoint, open_checkpoint
from mxfp4_core.dialects.base import Contents, Dialect
from mxfp4_core.errors import DialectError


def open_high_precision(path: str | Path) -> Checkpoint:
    """Open a checkpoint whose weights are yet to be quantised.

    Raises:
        CheckpointError: a damaged, incomplete or hostile file.
        DialectError: it is quantised, by whatever method.
    """
    checkpoint = open_checkpoint(path)
    if found := dialects.identify(checkpoint):
        name, reason, dialect = found
        raise DialectError(
            f"{checkpoint.path} is quantised already",
            seen=f"format {name} ({reason})",
            rule="weights are quantised once, from high precision",
            fix="`mxfp4 convert` changes its dialect" if dialect else "use the checkpoint it was made from",
        )
    return checkpoint


def open_quantized(path: str | Path, verb: str) -> tuple[Checkpoint, Dialect, Contents]:
    """Open a checkpoint with MXFP4 weights, and read what it consists of.

    Args:
        path: folder or file.
        verb: what is to be done with it, for the message.

    Raises:
        CheckpointError: a damaged, incomplete or hostile file.
        DialectError: high precision, a dialect that is not read, or a description that contradicts the tensors.
    """
    checkpoint = open_checkpoint(path)
    found = dialects.read(checkpoint)
    if found is None:
        raise DialectError(
            f"cannot {verb} {checkpoint.path}",
            seen="no quantised weights and no quantization_config",
            rule=f"{verb} reads MXFP4 checkpoints",
            fix="`mxfp4 quantize` makes one from high precision",
        )
    return checkpoint, *found


__all__ = ["open_high_precision", "open_quantized"]
