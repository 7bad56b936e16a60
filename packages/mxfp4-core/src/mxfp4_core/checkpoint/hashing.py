"""Hash files and tensors in pieces, so that no more than a piece is in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from mxfp4_core.checkpoint.header import damaged
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.checkpoint.tasks import Progress

PIECE = 4 << 20
"""Bytes that are held at a time."""


def file_sha256(path: Path, progress: Progress = lambda nbytes: None) -> str:
    """Return the sha256 of a file as hexadecimal text.

    Args:
        path: the file.
        progress: called with the number of bytes since the last call.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            buffer = memoryview(bytearray(min(PIECE, os.fstat(file.fileno()).st_size + 1)))
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                progress(count)
        return digest.hexdigest()
    except OSError as error:
        damaged(path, str(error), "the file can be read", "check the disk and the permissions")


def tensor_pieces(checkpoint: Checkpoint, name: str) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in order. A piece is valid until the next one is asked for."""
    size = checkpoint.tensors[name].nbytes
    buffer = memoryview(bytearray(min(PIECE, size)))
    for start in range(0, size, PIECE):
        piece = buffer[: min(PIECE, size - start)]
        checkpoint.read_into(name, start, piece)
        yield piece


def tensor_sha256(checkpoint: Checkpoint, name: str) -> str:
    """Return the sha256 of a tensor's data as hexadecimal text."""
    digest = hashlib.sha256()
    for piece in tensor_pieces(checkpoint, name):
        digest.update(piece)
    return digest.hexdigest()


__all__ = ["PIECE", "file_sha256", "tensor_pieces", "tensor_sha256"]
