"""Look at files and folders, of this machine or remote, in one way; a path that cannot exist is not there."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mxfp4_core.checkpoint.header import damaged
from mxfp4_core.checkpoint.remote import RemotePath, listed, read_range, walked

if TYPE_CHECKING:
    from typing_extensions import Buffer

PIECE = 4 << 20
"""Bytes that are held at a time of a file of this machine."""

REMOTE_PIECE = 16 << 20
"""The same of a remote one, where a request costs some hundredths of a second."""


def is_file(path: Path) -> bool:
    """Return whether a path is a file; links are followed."""
    return path.is_file() if isinstance(path, RemotePath) else os.path.isfile(path)


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; links are followed."""
    return path.is_dir() if isinstance(path, RemotePath) else os.path.isdir(path)


def is_there(path: Path) -> bool:
    """Return whether there is anything of this name, be it a link to nothing."""
    return path.exists() if isinstance(path, RemotePath) else os.path.lexists(path)


def names_in(folder: Path) -> list[str]:
    """Return the names of what lies directly in a folder, in order.

    Raises:
        OSError: a folder of this machine that cannot be read.
        CheckpointError: a remote one.
    """
    return list(listed(folder)) if isinstance(folder, RemotePath) else sorted(os.listdir(folder))


Identity = tuple[int, int, int]
"""Number, size and time of change of a file."""


def identity(path: Path) -> Identity:
    """Return what tells a file from another one, or from itself after a change.

    Raises:
        CheckpointError: the file cannot be looked at.
    """
    try:
        found = path.stat()
    except OSError as error:
        damaged(path, str(error), "the file can be read", "check the path and its permissions")
    if isinstance(path, RemotePath):
        return 0, found.st_size, found.st_ino
    return found.st_ino, found.st_size, found.st_mtime_ns


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield a folder and those below it with the names of their folders and files; no link is followed.

    Folders that are taken out of their list are not looked at.
    """
    if isinstance(folder, RemotePath):
        yield from walked(folder)
        return
    for here, folders, names in os.walk(folder):
        yield Path(here), folders, names


class _Ranges(io.RawIOBase):
    """A remote file that is read by ranges."""

    def __init__(self, path: RemotePath, size: int) -> None:
        self._path, self._size, self._at = path, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        data = read_range(self._path, self._at, min(self._size, self._at + len(view)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file that is read from its beginning, and say how long it is.

    Raises:
        OSError: it cannot be opened.
        CheckpointError: it is remote and cannot be read.
    """
    if isinstance(path, RemotePath):
        size = path.stat().st_size
        yield io.BufferedReader(_Ranges(path, size), 1 << 20), size
        return
    with open(path, "rb") as file:
        yield file, os.fstat(file.fileno()).st_size


def pieces_of(path: Path) -> Iterator[memoryview]:
    """Yield the bytes of a file in order. A piece is valid until the next one is asked for.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        size = path.stat().st_size
        if isinstance(path, RemotePath):
            for start in range(0, size, REMOTE_PIECE):
                yield memoryview(read_range(path, start, min(start + REMOTE_PIECE, size)))
            return
        with open(path, "rb", buffering=0) as file:
            buffer = memoryview(bytearray(min(PIECE, size + 1)))
            while count := file.readinto(buffer):
                yield buffer[:count]
    except OSError as error:
        damaged(
            path, error.strerror or str(error), "the file can be read", "check the disk and the permissions"
        )


__all__ = [
    "PIECE", "REMOTE_PIECE", "Identity", "identity", "is_file", "is_folder", "is_there", "names_in", "opened",
    "pieces_of",
    "walk",
]  # fmt: skip
