"""The destination of a run in a bucket, where nothing can be renamed: weights have their own names at once.

A folder without its manifest is no checkpoint yet: config and index, without which nobody loads it, are written when
all weights are there, and the manifest last. What a run has to remember is in ``.mxfp4-partial``: one object for the
run, which only one of several runs can create, and one for each finished file, which counts as long as the file has the
same tag (ETag, generation) as when it was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mxfp4_core.checkpoint.destination import RunFolder
from mxfp4_core.checkpoint.files import MANIFEST, STAGING
from mxfp4_core.checkpoint.journal import checked_line, line_of
from mxfp4_core.checkpoint.manifest import read_manifest
from mxfp4_core.checkpoint.remote import Facts, RemotePath, facts, file_system, listed, writing
from mxfp4_core.errors import CheckpointError, ConfigError, Mxfp4Error, OutputError

_RUN = "run.json"
_DONE = ".done.json"


class Bucket(RunFolder[RemotePath]):
    """The destination of one run in a bucket, a context manager; `RunFolder` has its arguments.

    A checkpoint is never replaced: there would be none for a while.

    Raises:
        ConfigError: ``works`` is given.
    """

    def _prepare(self) -> None:
        if self._updates:
            raise ConfigError(
                f"{self.folder} cannot be updated",
                seen="a checkpoint in a bucket",
                rule="a checkpoint in a bucket is never replaced",
                fix="write into another folder, without --update",
            )
        self._documents: dict[str, bytes] = {}

    def place(self, name: str) -> Path:
        """Return where a file is written: under its own name."""
        return self.folder / name

    def put(self, name: str, data: bytes) -> str:
        """Take a small file, to be written when all weights are there, and return its sha256."""
        self._documents[name] = data
        return hashlib.sha256(data).hexdigest()

    def room(self) -> int | None:
        """Return None: a bucket does not say how much it takes."""
        return None

    def __enter__(self) -> Self:
        with writing(self.folder):
            staged = listed(self.staging)
            earlier = self._read(_RUN) if _RUN in staged else None
            mine = self._is_mine(earlier)
            done = [name for name in staged if name.endswith(_DONE)]
            if earlier is not None and not mine and not self._force:
                self._refuse_other(len(done))
            present = listed(self.folder)
            if self._is_done(present, mine):
                return self
            self._check_existing(present, mine)
            same = earlier == self._run
            if earlier is not None and not same:
                self._discard(staged, present)
            if not same:
                self._create()
            elif done:
                self.finished = self._still_there(done, present)
        return self

    def record(self, shard: str, found: Mapping[str, Any]) -> None:
        """Write down that a shard is complete: it has its ``size``, ``sha256`` and ``tensors``.

        Raises:
            OutputError: it is not there in this size, or cannot be noted.
        """
        path = self.folder / shard
        with writing(path):
            there = facts(path)
            if there.size != found["size"]:
                raise ConnectionError(f"{there.size} bytes where {found['size']} were written")
            line = {"shard": shard, "tag": there.tag, **found}
            self._write(f"{shard}{_DONE}", line_of(line))
        self.finished[shard] = line

    def forget(self) -> None:
        """Give up what is finished, so that an error removes it: it was made from files that have changed."""
        for shard in self.finished:
            self._remove(self.staging / f"{shard}{_DONE}", self.folder / shard)
        self.finished = {}

    def commit(self) -> None:
        """Write the small files, the manifest last, and remove what the run had to remember.

        Raises:
            OutputError: another run has taken the folder over, or something cannot be written.
        """
        with writing(self.folder):
            present = listed(self.folder)
            changed = [
                name
                for name, line in self.finished.items()
                if name not in present or present[name].tag != line["tag"]
            ]
            if self._read(_RUN) != self._run or changed:
                raise OutputError(
                    f"cannot finish {self.folder}",
                    seen=f"{changed[0]} was written by somebody else"
                    if changed
                    else "another run writes into it",
                    rule="one run writes into a folder at a time",
                    fix="let one of them end, and run its command again",
                )
            for name in sorted(self._documents.keys() - {MANIFEST}):
                self._send(self.folder / name, self._documents[name])
            self._send(self.folder / MANIFEST, self._documents[MANIFEST])
            self._remove(*(self.staging / name for name in listed(self.staging)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self.complete is not None or self._stays(error):
            return
        try:
            if self._read(_RUN) == self._run:
                self._discard(listed(self.staging), listed(self.folder))
        except (Mxfp4Error, OSError):
            pass  # the error that ended the run is the one to tell; what is left has no manifest

    def _is_done(self, present: Mapping[str, Facts], mine: bool) -> bool:
        """Return whether an earlier attempt was killed when all was in place."""
        if not mine or MANIFEST not in present:
            return False
        try:
            found = read_manifest(self.folder)
            there = found is not None and all(
                facts(self.folder / name).size == each["size"] for name, each in found.files.items()
            )
        except (FileNotFoundError, CheckpointError):
            return False
        if found is None or not there or not self._is_result(found):
            return False
        self._remove(*(self.staging / name for name in listed(self.staging)))
        self.complete = found
        return True

    def _check_existing(self, present: Mapping[str, Facts], resumes: bool) -> None:
        """Refuse a folder with anything in it that no unfinished run of ours has written."""
        ours = {name.split("/", 1)[0] for name in self._names} if resumes else set[str]()
        ours |= {name.removesuffix(_DONE) for name in listed(self.staging)} | {STAGING}
        if MANIFEST in present or (present.keys() - ours and not self._force):
            raise OutputError(
                f"cannot write into {self.folder}",
                seen=f"{len(present)} entries, for example {min(present)!r}",
                rule="a checkpoint in a bucket is never replaced, and nothing is overwritten: there is no renaming",
                fix="choose another folder, or remove this one",
            )

    def _create(self) -> None:
        """Claim the folder; of several runs at the same time one succeeds."""
        system, key = file_system(self.staging / _RUN)
        try:
            system.pipe_file(key, line_of(self._run), mode="create")
        except FileExistsError:
            pass
        except OSError as error:
            if "recondition" not in str(error):
                raise
        if self._read(_RUN) != self._run:
            raise OutputError(
                f"cannot write into {self.folder}",
                seen="another run has begun to write into it",
                rule="one run writes into a folder at a time",
                fix="wait for it, or choose another destination",
            )

    def _still_there(self, done: Collection[str], present: Mapping[str, Facts]) -> dict[str, dict[str, Any]]:
        found = {}
        for name in done:
            line = self._read(name)
            shard = str(line.get("shard")) if line else ""
            there = present.get(shard)
            if line is None or there is None or shard not in self._names:
                continue
            unchanged = (there.size, there.tag) == (line.get("size"), line.get("tag"))
            if unchanged and isinstance(line.get("tensors"), dict):
                found[shard] = line
        return found

    def _discard(self, staged: Mapping[str, Facts], present: Mapping[str, Facts]) -> None:
        """Remove an unfinished run and what it has written."""
        theirs = {name.removesuffix(_DONE) for name in staged if name.endswith(_DONE)} & present.keys()
        if MANIFEST not in present:
            theirs |= self._names
        self._remove(*(self.folder / name for name in sorted(theirs)))
        self._remove(*(self.staging / name for name in staged if name != _RUN), self.staging / _RUN)
        self.finished = {}

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return checked_line((self.staging / name).read_bytes())
        except FileNotFoundError:
            return None

    def _write(self, name: str, data: bytes) -> None:
        self._send(self.staging / name, data)

    def _send(self, path: RemotePath, data: bytes) -> None:
        with writing(path):
            system, key = file_system(path)
            system.pipe_file(key, data)

    def _remove(self, *paths: RemotePath) -> None:
        for path in paths:
            with writing(path):
                system, key = file_system(path)
                try:
                    system.rm_file(key)
                except FileNotFoundError:
                    continue


__all__ = ["Bucket"]
