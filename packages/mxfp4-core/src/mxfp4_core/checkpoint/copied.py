"""Copy a file of the source, hashed on the way; an error says which of the two files cannot be read or written."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mxfp4_core.checkpoint.places import identity, pieces_of
from mxfp4_core.checkpoint.remote import RemotePath
from mxfp4_core.checkpoint.sinks import output_failed, sink_for


def copied(source: Path, path: Path) -> dict[str, object]:
    """Copy a file, with the folders around it, and return its size and sha256.

    Raises:
        CheckpointError: the source cannot be read.
        OutputError: the copy cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    _, expected, _ = identity(source)
    try:
        if not isinstance(path, RemotePath):
            path.parent.mkdir(parents=True, exist_ok=True)
        sink = sink_for(path, expected)
        try:
            for piece in pieces_of(source):
                digest.update(piece)
                size += len(piece)
                while len(piece):
                    piece = piece[sink.write(piece) :]
            sink.finish()
        finally:
            sink.discard()
    except OSError as error:
        output_failed(path, error)
    return {"size": size, "sha256": digest.hexdigest()}


__all__ = ["copied"]
