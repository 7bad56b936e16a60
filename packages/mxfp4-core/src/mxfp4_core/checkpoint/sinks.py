"""Where bytes go: files of this machine and objects in buckets, each complete or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol
from uuid import uuid4

from mxfp4_core.checkpoint.remote import RemotePath, file_system, writing
from mxfp4_core.checkpoint.writeback import begin_writing
from mxfp4_core.errors import OutputError

TEMPORARY = ".partial"
"""Suffix of a file that is being written."""

VISIBLE_SECONDS = 90.0
"""NFS may go on for a minute to say that a file is not there."""

_READ_BYTES = 4 << 20
_BEGIN_BYTES = 16 << 20
_PART_BYTES = 16 << 20
_MOST_PARTS = 9000
"""S3 takes 10,000 parts."""


class Sink(Protocol):
    """Takes bytes in order; the file appears when `finish` has been called, or not at all."""

    def write(self, data: memoryview) -> int:
        """Take some of the bytes, and return how many."""
        ...

    def finish(self) -> None:
        """Make the file appear, for good."""
        ...

    def discard(self) -> None:
        """Remove what is not finished; nothing happens after `finish`."""
        ...


class PlacedSink(Sink, Protocol):
    """Takes bytes in any order, each at its place."""

    def seek(self, offset: int) -> None:
        """Say where in the file what is written next belongs."""
        ...

    def pieces(self) -> Iterator[bytes]:
        """Read all from the start."""
        ...


class _Seekable:
    """The part of a sink that is a raw file of this machine."""

    _file: IO[bytes]

    def write(self, data: memoryview) -> int:
        """Write some bytes: a raw file may take less than it is given."""
        return self._file.write(data)

    def seek(self, offset: int) -> None:
        """Go to a place."""
        self._file.seek(offset)

    def pieces(self) -> Iterator[bytes]:
        """Read all from the start."""
        self._file.seek(0)
        while piece := self._file.read(_READ_BYTES):
            yield piece


class FileSink(_Seekable):
    """A file of this machine: written under another name, synced, renamed.

    Raises:
        OSError: from all methods.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, temporary_of(path)
        self._file = open(self._temporary, "wb+", buffering=0)  # noqa: SIM115  # closed by discard
        self._written = 0

    def write(self, data: memoryview) -> int:
        """Write some bytes, and have the disk begin with those before them: `finish` then waits for the last ones."""
        count = super().write(data)
        self._written += count
        if self._written >= _BEGIN_BYTES:
            begin_writing(self._file.fileno(), self._file.tell() - self._written, self._written)
            self._written = 0
        return count

    def finish(self) -> None:
        """Wait for the disk, and rename."""
        os.fsync(self._file.fileno())
        os.replace(self._temporary, self._path)
        sync_folder(self._path.parent)

    def discard(self) -> None:
        """Close and remove the file under its other name."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class ObjectSink:
    """An object in a bucket: uploaded in parts, which become the object when all are there.

    Args:
        path: its name.
        nbytes: how large it will be.

    Raises:
        OutputError: from all methods but `discard`.
    """

    def __init__(self, path: RemotePath, nbytes: int) -> None:
        self._path = path
        self._finished = False
        part = max(_PART_BYTES, -(-nbytes // _MOST_PARTS))
        with writing(path):
            system, key = file_system(path)
            self._file: Any = system.open(key, "wb", block_size=part, autocommit=False)

    def write(self, data: memoryview) -> int:
        """Upload what fills a part, and hold the rest."""
        with writing(self._path):
            self._file.write(data)
        return len(data)

    def finish(self) -> None:
        """Upload the rest, and make the object of the parts."""
        with writing(self._path):
            self._file.close()
            self._file.commit()
        self._finished = True

    def discard(self) -> None:
        """Give the parts up."""
        if not self._finished:
            self._finished = True
            # Closing would upload the rest. An error here would hide the one that led here; the parts are no object,
            # and a bucket is told to drop such parts after a while.
            self._file.closed = True
            with suppress(Exception):
                self._file.discard()


class SpooledSink(_Seekable):
    """An object in a bucket whose bytes come in any order: collected in a file of this machine, uploaded at the end.

    Args:
        path: its name.
        nbytes: how large it will be.

    Raises:
        OSError: no room for it on this machine.
        OutputError: from `finish`.
    """

    def __init__(self, path: RemotePath, nbytes: int) -> None:
        self._path, self._nbytes = path, nbytes
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by discard

    def finish(self) -> None:
        """Upload everything."""
        sink = ObjectSink(self._path, self._nbytes)
        try:
            for piece in self.pieces():
                sink.write(memoryview(piece))
            sink.finish()
        finally:
            sink.discard()

    def discard(self) -> None:
        """Close the file, which is then gone."""
        self._file.close()


def sink_for(path: Path, nbytes: int) -> Sink:
    """Open a place for a file of this size.

    Raises:
        OutputError: it cannot be written.
    """
    if isinstance(path, RemotePath):
        return ObjectSink(path, nbytes)
    try:
        return FileSink(path)
    except OSError as error:
        output_failed(path, error)


def placed_sink_for(path: Path, nbytes: int) -> PlacedSink:
    """Open a place for a file of this size whose bytes come in any order.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        return SpooledSink(path, nbytes) if isinstance(path, RemotePath) else FileSink(path)
    except OSError as error:
        output_failed(path, error)


def temporary_of(path: Path) -> Path:
    """Return where a file is written until it is complete: a name that no other attempt at the same file has.

    A machine that was given up may go on writing for a while; it then meets nobody.
    """
    return path.with_name(f"{uuid4().hex[:12]}{TEMPORARY}")


def write_file(path: Path, data: bytes) -> str:
    """Write a small file so that it is complete or absent, and return its sha256.

    Raises:
        OutputError: the disk is full or the file cannot be written.
    """
    temporary = temporary_of(path)
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        output_failed(path, error)
    return hashlib.sha256(data).hexdigest()


def wait_for_file(path: Path, size: int) -> None:
    """Wait until a file that somebody has written is seen here; a file system of many machines may take its time.

    Raises:
        OutputError: it does not come.
    """
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not os.path.isfile(path) or path.stat().st_size != size:
        if time.monotonic() > deadline:
            raise OutputError(
                f"cannot find {path}",
                seen="a worker has written it, and it is not here",
                rule="all workers see the same files under the same names",
                fix="choose a destination on a file system that all machines share, or in a bucket",
            )
        os.listdir(path.parent)  # makes NFS look again
        time.sleep(VISIBLE_SECONDS / 300)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files that they belong to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def output_failed(path: Path, error: OSError) -> NoReturn:
    """Turn a failure to write into the error that says what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    raise OutputError(
        f"cannot write {path}",
        seen=error.strerror or str(error),
        rule="the destination has room for the result and may be written",
        fix="free space there and run the same command again"
        if full
        else "choose a destination that can be written",
    ) from error


__all__ = [
    "TEMPORARY", "PlacedSink", "Sink", "output_failed", "placed_sink_for", "sink_for", "sync_folder", "temporary_of",
    "wait_for_file", "write_file",
]  # fmt: skip
