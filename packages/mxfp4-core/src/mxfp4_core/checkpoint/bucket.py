"""The destination of a run in a bucket, where nothing can be renamed: weights have their own names at once.

A folder without its manifest is no checkpoint yet: config and index, without which nobody loads it, are written when
all weights are there, and the manifest last. What a run has to remember is in ``.mxfp4-partial``: one object for the
run, which only one of several runs can create, and one for each finished file, which counts as long as the file has the
same tag (ETag, generation) as when it was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mxfp4_core.checkpoint.files import MANIFEST, STAGING
from mxfp4_core.checkpoint.journal import checked_line, line_of
from mxfp4_core.checkpoint.manifest import Manifest, read_manifest
from mxfp4_core.checkpoint.remote import Facts, RemotePath, facts, file_system, listed, writing
from mxfp4_core.errors import CheckpointError, ConfigError, Mxfp4Error, OutputError

_RUN = "run.json"
_DONE = ".done.json"


class Bucket:
    """The destination of one run in a bucket; it is used as `Destination` is.

    Args:
        folder: where the checkpoint appears.
        run: what identifies the run; another one does not continue it.
        names: every file that the run writes, the manifest included.
        copies: those of them that are copied from the source.
        seen: what tells the files of the source from others that take their place.
        force: discard what another run left. A checkpoint is never replaced: there would be none for a while.
        works: as for `Destination`, and not possible here.

    Raises:
        ConfigError: ``works`` is given.

    Attributes:
        finished: facts about each shard that is complete, by its name.
        complete: the manifest, where an earlier attempt had done everything but clean up after itself.
    """

    def __init__(
        self,
        folder: RemotePath,
        run: Mapping[str, str],
        names: Collection[str],
        *,
        copies: Collection[str] = (),
        seen: str = "",
        force: bool,
        works: Mapping[str, str] | None = None,
    ) -> None:
        if works is not None:
            raise ConfigError(
                f"{folder} cannot be updated",
                seen="a checkpoint in a bucket",
                rule="a checkpoint in a bucket is never replaced",
                fix="write into another folder, without --update",
            )
        self.folder = folder
        self.run = hashlib.sha256(json.dumps(dict(run), sort_keys=True).encode()).hexdigest()
        self.finished: dict[str, dict[str, Any]] = {}
        self.complete: Manifest | None = None
        self._staging = folder / STAGING
        self._run = {"run": dict(run), "seen": seen}
        self._names, self._copies, self._force = set(names), set(copies), force
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
            staged = listed(self._staging)
            earlier = self._read(_RUN) if _RUN in staged else None
            mine = earlier is not None and earlier.get("run") == self._run["run"]
            done = [name for name in staged if name.endswith(_DONE)]
            if earlier is not None and not mine and not self._force:
                raise OutputError(
                    f"cannot write into {self.folder}",
                    seen=f"{STAGING} with {len(done)} finished shard(s) of another run",
                    rule="a run continues only with the same source, settings and release",
                    fix="run the first command again, or discard its work with --force",
                )
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
            self._remove(self._staging / f"{shard}{_DONE}", self.folder / shard)
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
            self._remove(*(self._staging / name for name in listed(self._staging)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self.complete is not None:
            return
        hopeless = isinstance(error, Mxfp4Error) and not isinstance(error, OutputError | CheckpointError)
        if self.finished and not hopeless:
            return
        try:
            if self._read(_RUN) == self._run:
                self._discard(listed(self._staging), listed(self.folder))
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
        if (
            found is None
            or found.run != self.run
            or not there
            or found.files.keys() | {MANIFEST} != self._names
        ):
            return False
        self._remove(*(self._staging / name for name in listed(self._staging)))
        self.complete = found
        return True

    def _check_existing(self, present: Mapping[str, Facts], resumes: bool) -> None:
        """Refuse a folder with anything in it that no unfinished run of ours has written."""
        ours = {name.split("/", 1)[0] for name in self._names} if resumes else set[str]()
        ours |= {name.removesuffix(_DONE) for name in listed(self._staging)} | {STAGING}
        if MANIFEST in present or (present.keys() - ours and not self._force):
            raise OutputError(
                f"cannot write into {self.folder}",
                seen=f"{len(present)} entries, for example {min(present)!r}",
                rule="a checkpoint in a bucket is never replaced, and nothing is overwritten: there is no renaming",
                fix="choose another folder, or remove this one",
            )

    def _create(self) -> None:
        """Claim the folder; of several runs at the same time one succeeds."""
        system, key = file_system(self._staging / _RUN)
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
        self._remove(*(self._staging / name for name in staged if name != _RUN), self._staging / _RUN)
        self.finished = {}

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return checked_line((self._staging / name).read_bytes())
        except FileNotFoundError:
            return None

    def _write(self, name: str, data: bytes) -> None:
        self._send(self._staging / name, data)

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
