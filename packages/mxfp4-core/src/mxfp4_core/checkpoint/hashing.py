"""Hash files and tensors in pieces, so that no more than a piece is in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from mxfp4_core.checkpoint.places import PIECE, REMOTE_PIECE, pieces_of
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.checkpoint.remote import RemotePath
from mxfp4_core.checkpoint.tasks import Progress


def file_sha256(path: Path, progress: Progress = lambda nbytes: None) -> str:
    """Return the sha256 of a file as hexadecimal text.

    Args:
        path: the file.
        progress: called with the number of bytes since the last call.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digest = hashlib.sha256()
    for piece in pieces_of(path):
        digest.update(piece)
        progress(len(piece))
    return digest.hexdigest()


def tensor_pieces(checkpoint: Checkpoint, name: str) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in order. A piece is valid until the next one is asked for."""
    info = checkpoint.tensors[name]
    size, step = info.nbytes, REMOTE_PIECE if isinstance(info.file, RemotePath) else PIECE
    buffer = memoryview(bytearray(min(step, size)))
    for start in range(0, size, step):
        piece = buffer[: min(step, size - start)]
        checkpoint.read_into(name, start, piece)
        yield piece


def tensor_sha256(checkpoint: Checkpoint, name: str) -> str:
    """Return the sha256 of a tensor's data as hexadecimal text."""
    digest = hashlib.sha256()
    for piece in tensor_pieces(checkpoint, name):
        digest.update(piece)
    return digest.hexdigest()


__all__ = ["file_sha256", "tensor_pieces", "tensor_sha256"]
