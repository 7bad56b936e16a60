"""The journal of a run: one line for the run and one for each finished shard, each on disk before the next begins.

Each line has a hash of itself, so that a damaged line is noticed: it, and what follows it, count as not written. The
file is locked while a run writes, and no link is followed to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mxfp4_core.checkpoint.header import MAX_HEADER_BYTES
from mxfp4_core.checkpoint.sinks import output_failed
from mxfp4_core.errors import OutputError

_HASH = "line_sha256"


class Journal:
    """A file of lines; use `read` before `open`, and `close` at the end.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1
        self._valid_bytes = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the lines up to the first that is incomplete or damaged; none where there is no journal.

        Raises:
            OutputError: a link, or no regular file, is in its place.
        """
        self._valid_bytes = 0
        lines: list[dict[str, Any]] = []
        for line in self._content().split(b"\n")[:-1]:
            content = checked_line(line)
            if content is None:
                break
            lines.append(content)
            self._valid_bytes += len(line) + 1
        return lines

    def open(self) -> None:
        """Open it for writing, and lock it.

        Raises:
            OSError: it cannot be opened.
            OutputError: another process writes it, or a link is in its place.
        """
        self._file = os.open(
            self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
        )
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise OutputError(
                f"cannot write into {self.path.parent.parent}",
                seen="another process is writing into it",
                rule="one run writes into a folder at a time",
                fix="wait for it, or choose another destination",
            ) from None

    def keep_valid(self, lines: bool) -> None:
        """Cut off what `read` did not return; all of it where the lines are those of another run."""
        os.ftruncate(self._file, self._valid_bytes if lines else 0)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line, and wait until it is on disk.

        Raises:
            OutputError: the disk is full or the file cannot be written.
        """
        text = line_of(line)
        try:
            while text:
                text = text[os.write(self._file, text) :]
            os.fsync(self._file)
        except OSError as error:
            output_failed(self.path, error)

    def close(self) -> None:
        """Close it, which ends the lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _content(self) -> bytes:
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            raise refused(self.path, error.strerror or str(error)) from error
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise refused(self.path, "no regular file")
            with open(file, "rb", closefd=False) as reading:
                return reading.read(MAX_HEADER_BYTES)
        except OSError as error:
            raise refused(self.path, error.strerror or str(error)) from error
        finally:
            os.close(file)


def line_of(content: Mapping[str, Any]) -> bytes:
    """Return a line with a hash of itself."""
    return json.dumps({**content, _HASH: _hash(content)}).encode() + b"\n"


def refused(path: Path, seen: str) -> OutputError:
    """Return the error for something in the place of what a run keeps in its destination."""
    return OutputError(
        f"cannot use {path}",
        seen=seen,
        rule="a run keeps its work in a folder of its own in the destination, and follows no links there",
        fix="remove it, or choose another destination",
    )


def checked_line(line: bytes) -> dict[str, Any] | None:
    """Return what `line_of` made a line of; None where it is damaged."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    stated = content.pop(_HASH, None)
    return content if stated == _hash(content) else None


def _hash(line: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()


__all__ = ["Journal", "checked_line", "line_of", "refused"]
