"""Copy a file of the source, hashed on the way; an error says which of the two files cannot be read or written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from mxfp4_core.checkpoint.hashing import PIECE
from mxfp4_core.checkpoint.header import damaged
from mxfp4_core.checkpoint.writer import output_failed


def copied(source: Path, path: Path) -> dict[str, object]:
    """Copy a file, with the folders around it, and return its size and sha256.

    Raises:
        CheckpointError: the source cannot be read.
        OutputError: the copy cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as writing:
            for piece in _pieces(source):
                writing.write(piece)
                digest.update(piece)
                size += len(piece)
            writing.flush()
            os.fsync(writing.fileno())
    except OSError as error:
        output_failed(path, error)
    return {"size": size, "sha256": digest.hexdigest()}


def _pieces(source: Path) -> Iterator[bytes]:
    try:
        with open(source, "rb") as reading:
            while piece := reading.read(PIECE):
                yield piece
    except OSError as error:
        damaged(
            source, error.strerror or str(error), "the file can be read", "check its permissions and the disk"
        )


__all__ = ["copied"]
