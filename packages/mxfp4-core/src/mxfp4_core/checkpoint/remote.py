"""Files in buckets and on other remote file systems, through fsspec: paths that begin with ``scheme://``.

A `RemotePath` is a `Path`, so that names, parents and suffixes work as they do everywhere; what would touch this
machine's own files is an error. Whatever a remote file system raises becomes an error of ours that says what to do.
Credentials, endpoints and timeouts are those of fsspec and of the library below it: nothing is stored or passed on.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from mxfp4_core.errors import CheckpointError, ConfigError, Mxfp4Error, OutputError

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)", re.DOTALL)
_TAGS = (
    "ETag", "etag", "generation", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "created",
)  # fmt: skip
_RANGE = 8 << 20
"""Bytes of one request; several are under way at once where the file system can do it."""


class RemotePath(type(Path())):  # type: ignore[misc]  # the class of paths of this machine
    """A path such as ``s3://bucket/model``."""

    def __str__(self) -> str:
        """Return the URL; a relative path as it is."""
        first, *rest = self.parts or ("",)
        return f"{first}//{'/'.join(rest)}" if first.endswith(":") else "/".join(self.parts)

    def __fspath__(self) -> str:
        """Refuse to be opened as a file of this machine.

        Raises:
            TypeError: always; a mistake in the caller.
        """
        raise TypeError(f"{self} is no file of this machine")

    def absolute(self) -> RemotePath:
        """Return the path itself."""
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        """Return the path itself: there are no links."""
        return self

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return kind and size, and in the place of the inode a number that another file of this name has not.

        Raises:
            FileNotFoundError: nothing is there.
            CheckpointError: it cannot be looked at.
        """
        found = facts(self)
        kind = stat.S_IFDIR if found.folder else stat.S_IFREG
        return os.stat_result((kind, found.tag, 0, 1, 0, 0, found.size, 0, 0, 0))

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return self._is(folder=False)

    def is_dir(self) -> bool:
        """Return whether it is a folder: files have names that begin with it."""
        return self._is(folder=True)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a file or folder."""
        return self._is(folder=None)

    def is_symlink(self) -> bool:
        """Return False."""
        return False

    def read_bytes(self) -> bytes:
        """Return all bytes of the file."""
        return read_range(self, 0, facts(self).size)

    def _is(self, folder: bool | None) -> bool:
        try:
            return folder in (None, facts(self).folder)
        except FileNotFoundError:
            return False


def place(path: str | os.PathLike[str]) -> Path:
    """Return the path that is meant: a `RemotePath` for ``scheme://``, a path of this machine for all else."""
    if isinstance(path, RemotePath):
        return path
    text = os.fspath(path)
    found = _URL.fullmatch(text)
    if not found or ("://" not in text and os.path.lexists(f"{found[1]}:")):
        return Path(path)
    if found[1] in ("file", "local"):
        return Path(f"/{found[2]}")
    return RemotePath(f"{found[1]}:/{found[2]}")


@dataclass(frozen=True)
class Facts:
    """What a remote file system says about a path.

    Attributes:
        folder: whether it is a folder.
        size: bytes.
        tag: a number that changes when the file is written again.
    """

    folder: bool
    size: int
    tag: int


def file_system(path: RemotePath) -> tuple[Any, str]:
    """Return the file system of fsspec, and the path in its own words.

    Raises:
        ConfigError: fsspec, or what it needs for this scheme, is not installed; or it knows no such scheme.
    """
    url = str(path)
    try:
        import fsspec.core

        system, key = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"cannot use {url}",
            seen=_said(error),
            rule="a path with :// is read and written by the package of fsspec for it",
            fix='install what is missing: for S3, in a clone, pip install "./packages/mxfp4-core[remote]"; '
            "others are gcsfs and adlfs; a model on the Hub is fetched by `hf download`",
        ) from error
    return system, str(key)


def facts(path: RemotePath) -> Facts:
    """Look at a path; nothing is taken from a cache.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: it cannot be looked at.
    """
    with reading(path):
        system, key = file_system(path)
        system.invalidate_cache()
        return _facts(system.info(key))


def listed(path: RemotePath) -> dict[str, Facts]:
    """Return what lies directly in a folder, by name; nothing where the folder is not there.

    Raises:
        CheckpointError: it cannot be looked at.
    """
    try:
        with reading(path):
            system, key = file_system(path)
            system.invalidate_cache()
            found = {
                each["name"].rstrip("/").rsplit("/", 1)[-1]: _facts(each)
                for each in system.ls(key, detail=True)
            }
    except FileNotFoundError:
        return {}
    return {name: found[name] for name in sorted(found) if name != path.name or found[name].folder}


def walked(path: RemotePath) -> Iterator[tuple[RemotePath, list[str], list[str]]]:
    """Yield folders as `os.walk` does.

    Raises:
        CheckpointError: a folder cannot be looked at.
    """
    found = listed(path)
    folders = [name for name, each in found.items() if each.folder]
    yield path, folders, [name for name, each in found.items() if not each.folder]
    for name in folders:
        yield from walked(path / name)


def read_range(path: RemotePath, start: int, stop: int) -> bytes:
    """Return bytes of a file, by several requests at once where they are many.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: it cannot be read, or is shorter than that.
    """
    if stop <= start:
        return b""
    with reading(path):
        system, key = file_system(path)
        starts = list(range(start, stop, _RANGE))
        stops = [*starts[1:], stop]
        pieces = system.cat_ranges([key] * len(starts), starts, stops, on_error="return")
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
        found: bytes = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(found) != stop - start:
            raise ConnectionError(f"{len(found)} of the bytes {start} to {stop} came")
        return found


def read_many(ranges: Sequence[tuple[RemotePath, int, int]]) -> list[bytes]:
    """Return ranges of files of one file system, by requests that are under way at once; all of them are held.

    Raises:
        FileNotFoundError, CheckpointError: as `read_range`.
    """
    if not ranges:
        return []
    first = ranges[0][0]
    with reading(first):
        system, _ = file_system(first)
        keys = [file_system(path)[1] for path, _, _ in ranges]
        _, starts, stops = map(list, zip(*ranges, strict=True))
        found: list[Any] = system.cat_ranges(keys, starts, stops, on_error="return")
        for piece, (_, start, stop) in zip(found, ranges, strict=True):
            if isinstance(piece, BaseException):
                raise piece
            if len(piece) != stop - start:
                raise ConnectionError(f"{len(piece)} of the bytes {start} to {stop} came")
        return found


@contextmanager
def reading(path: RemotePath) -> Iterator[None]:
    """Turn what a remote file system raises into CheckpointError; that nothing is there stays FileNotFoundError."""
    try:
        yield
    except (Mxfp4Error, FileNotFoundError):
        raise
    except Exception as error:  # each package of fsspec has errors of its own
        unreadable(path, error)


def unreadable(path: RemotePath, error: Exception) -> NoReturn:
    """Raise the error for a remote file that cannot be read."""
    rule, fix = _advice(error, "read")
    raise CheckpointError(f"cannot read {path}", seen=_said(error), rule=rule, fix=fix) from error


@contextmanager
def writing(path: RemotePath) -> Iterator[None]:
    """Turn what a remote file system raises into OutputError."""
    try:
        yield
    except CheckpointError as error:
        raise OutputError(f"cannot write {path}", seen=error.seen, rule=error.rule, fix=error.fix) from error
    except Mxfp4Error:
        raise
    except Exception as error:  # each package of fsspec has errors of its own
        rule, fix = _advice(error, "write")
        raise OutputError(f"cannot write {path}", seen=_said(error), rule=rule, fix=fix) from error


def _facts(info: dict[str, Any]) -> Facts:
    found = next((info[key] for key in _TAGS if info.get(key) is not None), "")
    # The same moment may be told in two ways, by the file and by its folder.
    told = str(found.timestamp() if isinstance(found, datetime) else found).strip('"')
    tag = int.from_bytes(hashlib.sha256(told.encode()).digest()[:7], "little")
    return Facts(info.get("type") == "directory", int(info.get("size") or 0), tag)


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _advice(error: Exception, verb: str) -> tuple[str, str]:
    name = type(error).__name__
    if isinstance(error, PermissionError) or "Credential" in name or "Forbidden" in name:
        return (
            f"this machine may {verb} it",
            f"give it the right to {verb}: credentials are looked for where the package of fsspec does, for S3 where "
            "the AWS command line does",
        )
    if isinstance(error, FileNotFoundError):
        return "the bucket or folder exists", "check the name"
    return (
        "the server answers, wholly and in time",
        "if it may pass, run the same command again: finished files are kept; else check endpoint and network",
    )


__all__ = [
    "Facts", "RemotePath", "facts", "file_system", "listed", "place", "read_many", "read_range", "reading",
    "unreadable", "walked", "writing",
]  # fmt: skip
