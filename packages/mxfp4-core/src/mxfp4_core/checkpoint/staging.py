"""The folder that a run writes into: nothing appears in it before everything is complete.

Files are finished in the subfolder ``.mxfp4-partial`` and moved up together at the end; those that are copied from the
source lie in a subfolder of it, so that no name of theirs meets one of ours. A journal there has one line for the run
and one for each finished shard. A run that was killed is continued by the same command: a shard counts when the hash of
its bytes on disk is the one in the journal, and no file of the source was changed since it was read.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mxfp4_core.checkpoint.destination import RunFolder
from mxfp4_core.checkpoint.existing import check_existing, inside_destination
from mxfp4_core.checkpoint.files import MANIFEST, STAGING
from mxfp4_core.checkpoint.hashing import file_sha256
from mxfp4_core.checkpoint.journal import Journal, refused
from mxfp4_core.checkpoint.kept import KEPT, kept_files
from mxfp4_core.checkpoint.manifest import read_manifest
from mxfp4_core.checkpoint.sinks import TEMPORARY, output_failed, sync_folder, wait_for_file, write_file
from mxfp4_core.errors import CheckpointError

_JOURNAL = "journal.jsonl"
_COPIES = "copies"


class Destination(RunFolder[Path]):
    """The destination of one run, a context manager; `RunFolder` has its arguments.

    What is unfinished when it fails is removed, but for finished shards that the next attempt can use.
    """

    def _prepare(self) -> None:
        self._created: list[Path] = []
        self._stale: set[str] = set()
        self._journal = Journal(self.staging / _JOURNAL)

    def place(self, name: str) -> Path:
        """Return where a file is finished."""
        below = self.staging / _COPIES if name in self._copies else self.staging
        return below.absolute() / name

    def put(self, name: str, data: bytes) -> str:
        """Finish a small file, and return its sha256."""
        return write_file(self.staging / name, data)

    def room(self) -> int | None:
        """Return the bytes that are free."""
        return shutil.disk_usage(self.staging).free

    def __enter__(self) -> Self:
        self._check_staging()
        if self._is_done():
            return self
        earlier = self._journal.read()
        resumes = self._is_mine(earlier[0] if earlier else None)
        if len(earlier) > 1 and not resumes and not self._force:
            self._refuse_other(len(earlier) - 1)
        self._stale = check_existing(self.folder, self._names, resumes=resumes, force=self._force)
        try:
            self._make_folders()
            self._journal.open()
        except OSError as error:
            self._remove_created()
            output_failed(self.folder, error)
        try:
            same = resumes and earlier[0].get("seen") == self._run["seen"]
            kept = {} if same else kept_files(self.folder, self.staging, earlier[1:], self._works)
            self._journal.keep_valid(same)
            self._discard_staged(same)
            if same:
                self.finished = {line["shard"]: line for line in earlier[1:] if self._is_on_disk(line)}
            else:
                self._journal.append(self._run)
                for name, line in kept.items():
                    os.replace(self.staging / f"{name}{KEPT}", self.staging / name)
                    self.record(name, line)
        except BaseException as error:
            self._journal.close()
            if isinstance(error, OSError):
                output_failed(self.folder, error)
            raise
        return self

    def record(self, shard: str, facts: Mapping[str, Any]) -> None:
        """Write down that a shard is complete: ``facts`` has its ``size``, ``sha256`` and ``tensors``.

        Raises:
            OutputError: it is not here: whoever wrote it sees other files under the same names.
        """
        wait_for_file(self.staging / shard, facts["size"])
        self._journal.append({"shard": shard, **facts})
        self.finished[shard] = {"shard": shard, **facts}

    def forget(self) -> None:
        """Give up what is finished, so that an error removes it: it was made from files that have changed."""
        self.finished = {}

    def commit(self) -> None:
        """Move all files up, the manifest last, and remove files of an earlier run that has been replaced.

        Raises:
            OutputError: a file cannot be moved; running the same command again goes on from there.
        """
        try:
            for name in sorted(self._names - {MANIFEST}):
                self._move_up(name)
            for name in sorted(self._stale):
                inside_destination(self.folder, name).unlink(missing_ok=True)
            for folder in sorted({(self.folder / name).parent for name in self._names}):
                sync_folder(folder)
            # Last: until then the old manifest says what belonged to the checkpoint that is being replaced.
            self._move_up(MANIFEST)
            sync_folder(self.folder)
            self._clean_up()
        except OSError as error:
            output_failed(self.folder, error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()
        if error is None or self.complete is not None:
            return
        if self._stays(error):
            for path in self.staging.glob(f"*{TEMPORARY}"):  # of a worker that was killed
                path.unlink(missing_ok=True)
            return
        shutil.rmtree(self.staging, ignore_errors=True)
        self._remove_created()

    def _remove_created(self) -> None:
        for path in reversed(self._created):
            if path.exists() and not any(path.iterdir()):
                path.rmdir()

    def _move_up(self, name: str) -> None:
        if os.path.lexists(self.place(name)):  # else an earlier attempt has moved it
            path = inside_destination(self.folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.place(name), path)

    def _clean_up(self) -> None:
        """Remove the folder for unfinished files; the journal last, since it says whose leftovers these are."""
        for path in self.staging.iterdir():
            if path.name != _JOURNAL:
                _remove(path)
        self._journal.path.unlink(missing_ok=True)
        self.staging.rmdir()

    def _check_staging(self) -> None:
        try:
            mode = os.lstat(self.staging).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            output_failed(self.folder, error)
        if not stat.S_ISDIR(mode):
            raise refused(self.staging, "a link" if stat.S_ISLNK(mode) else "no folder")

    def _is_done(self) -> bool:
        """Return whether an earlier attempt was killed when all was in place, and only the empty folder was left."""
        try:
            if any(self.staging.iterdir()):
                return False
            found = read_manifest(self.folder)
            there = found is not None and all(
                os.stat(inside_destination(self.folder, name)).st_size == facts["size"]
                for name, facts in found.files.items()
            )
        except (OSError, CheckpointError):
            return False
        if found is None or not there or not self._is_result(found):
            return False
        self.staging.rmdir()
        self.complete = found
        return True

    def _make_folders(self) -> None:
        for path in (*reversed(self.folder.parents), self.folder, self.staging):
            if not os.path.lexists(path):
                path.mkdir()
                self._created.append(path)

    def _discard_staged(self, resumes: bool) -> None:
        """Remove what is left of another run; of this one, only what can be no file of ours."""
        for path in self.staging.iterdir():
            if path.suffix == KEPT and not resumes:
                continue
            ours = (
                resumes and path.is_file() and not path.is_symlink() and path.suffix not in (TEMPORARY, KEPT)
            )
            if path.name != _JOURNAL and not ours:
                _remove(path)

    def _is_on_disk(self, line: Mapping[str, Any]) -> bool:
        name = line.get("shard")
        if name not in self._names or not isinstance(line.get("tensors"), dict):
            return False
        path = self.staging / str(name)
        path = path if os.path.lexists(path) else self.folder / str(name)
        return (
            path.is_file()
            and not path.is_symlink()
            and path.stat().st_size == line.get("size")
            and file_sha256(path) == line.get("sha256")
        )


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder; no link is followed."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


__all__ = ["STAGING", "Destination"]
