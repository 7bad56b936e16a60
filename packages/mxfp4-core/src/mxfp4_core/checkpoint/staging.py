"""The folder that a run writes into: nothing appears in it before everything is complete.

Files are finished in the subfolder ``.mxfp4-partial`` and moved up together at the end. A journal there has
one line for the run and one for each finished shard, each on disk before the next shard begins. A run that
was killed is continued by the same command: a shard counts when the hash of its bytes on disk is the one in
the journal.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mxfp4_core.checkpoint.files import MANIFEST
from mxfp4_core.checkpoint.hashing import file_sha256
from mxfp4_core.checkpoint.manifest import read_manifest
from mxfp4_core.checkpoint.writer import TEMPORARY, output_failed, sync_folder
from mxfp4_core.errors import CheckpointError, Mxfp4Error, OutputError

STAGING = ".mxfp4-partial"
_JOURNAL = "journal.jsonl"
_WEIGHTS = (".safetensors", ".safetensors.index.json")


class Target:
    """The target of one run, a context manager; what is unfinished when it fails is removed.

    Finished shards stay for the next attempt after an interruption, a full disk or a source that could not be read.
    They are removed after an error about a weight, which the same command would only meet again.

    Args:
        folder: where the checkpoint appears.
        run: what identifies the run; another one does not continue it.
        names: every file that the run writes, the manifest included.
        force: replace files in the folder, and discard what another run left.
    """

    def __init__(self, folder: Path, run: Mapping[str, str], names: Collection[str], *, force: bool) -> None:
        self.folder = folder
        self.staging = folder / STAGING
        self.finished: dict[str, dict[str, Any]] = {}
        self._run = {"run": dict(run)}
        self._names = set(names)
        self._force = force
        self._created: list[Path] = []
        self._stale: set[str] = set()
        self._valid_bytes = 0

    def __enter__(self) -> Self:
        earlier = self._read_journal()
        resumes = bool(earlier) and earlier[0] == self._run
        if len(earlier) > 1 and not resumes and not self._force:
            raise OutputError(
                f"cannot write into {self.folder}",
                seen=f"{STAGING} with {len(earlier) - 1} finished shard(s) of another run",
                rule="a run continues only with the same source, settings and release",
                fix="run the first command again, or discard its work with --force",
            )
        self._check_existing(resumes)
        try:
            self._make_folders()
            self._journal = open(self.staging / _JOURNAL, "a", encoding="utf-8")
        except OSError as error:
            self._remove_created()
            output_failed(self.folder, error)
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._journal.close()
            raise OutputError(
                f"cannot write into {self.folder}",
                seen="another process is writing into it",
                rule="one run writes into a folder at a time",
                fix="wait for it, or choose another target",
            ) from None
        if resumes:
            self._journal.truncate(self._valid_bytes)
            self.finished = {line["shard"]: line for line in earlier[1:] if self._is_on_disk(line)}
        else:
            self._discard_staged()
            self._append(self._run)
        return self

    def record(self, shard: str, facts: Mapping[str, Any]) -> None:
        """Write down that a shard is complete: ``facts`` has its ``size``, ``sha256`` and ``tensors``."""
        self._append({"shard": shard, **facts})
        self.finished[shard] = {"shard": shard, **facts}

    def commit(self) -> None:
        """Move all files up, the manifest last, and remove files of an earlier run that has been replaced.

        Raises:
            OutputError: a file cannot be moved; running the same command again goes on from there.
        """
        try:
            for name in sorted(self._names - {MANIFEST}):
                self._move_up(name)
            for name in self._stale:
                (self.folder / name).unlink(missing_ok=True)
            # Last: until then the old manifest says what belonged to the checkpoint that is being replaced.
            self._move_up(MANIFEST)
            sync_folder(self.folder)
            shutil.rmtree(self.staging)
        except OSError as error:
            output_failed(self.folder, error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()
        hopeless = isinstance(error, Mxfp4Error) and not isinstance(error, OutputError | CheckpointError)
        if error is None:
            return
        if self.finished and not hopeless:
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
        if (self.staging / name).exists():  # else an earlier attempt has moved it
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.staging / name, self.folder / name)

    def _check_existing(self, resumes: bool) -> None:
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise OutputError(
                f"cannot write into {self.folder}",
                seen="a file",
                rule="the target is a folder",
                fix="choose a folder",
            )
        present = {path.name for path in self.folder.iterdir()} - {STAGING}
        expected = {name.split("/", 1)[0] for name in self._names} if resumes else set[str]()
        if not self._force and (unexpected := present - expected):
            raise OutputError(
                f"cannot write into {self.folder}",
                seen=f"{len(unexpected)} entries, for example {min(unexpected)!r}",
                rule="nothing is overwritten unless asked for",
                fix="choose another target, or pass --force to replace the checkpoint in it",
            )
        owned = self._owned()
        self._stale = {name for name in owned.keys() - self._names if self._is_ours(name, owned[name])}
        if weights := {name for name in present if name.endswith(_WEIGHTS)} - owned.keys() - self._names:
            raise OutputError(
                f"cannot write into {self.folder}",
                seen=f"weights that mxfp4 did not write: {min(weights)}",
                rule="only files that are listed in a manifest are removed",
                fix="remove them yourself, or choose another target",
            )

    def _owned(self) -> dict[str, dict[str, Any]]:
        try:
            manifest = read_manifest(self.folder)
        except CheckpointError:
            return {}
        return manifest.files if manifest else {}

    def _is_ours(self, name: str, facts: Mapping[str, Any]) -> bool:
        """Return whether a file is as an earlier run wrote it; what somebody has edited since is theirs."""
        path = self.folder / name
        if name.endswith(_WEIGHTS) or not path.is_file() or path.is_symlink():
            return name.endswith(_WEIGHTS)
        return path.stat().st_size == facts.get("size") and file_sha256(path) == facts["sha256"]

    def _make_folders(self) -> None:
        for path in (*reversed(self.folder.parents), self.folder, self.staging):
            if not path.exists():
                path.mkdir()
                self._created.append(path)

    def _read_journal(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        try:
            text = (self.staging / _JOURNAL).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return lines
        for line in text.splitlines(keepends=True):
            try:
                content = json.loads(line)
            except ValueError:
                break  # the last line of a run that was killed while it wrote
            if not line.endswith("\n") or not isinstance(content, dict):
                break
            lines.append(content)
            self._valid_bytes += len(line.encode())
        return lines

    def _discard_staged(self) -> None:
        self._journal.truncate(0)
        for path in self.staging.iterdir():
            if path.name != _JOURNAL:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _is_on_disk(self, line: Mapping[str, Any]) -> bool:
        if line.get("shard") not in self._names:
            return False
        path = self.staging / str(line["shard"])
        path = path if path.exists() else self.folder / path.name
        return (
            path.is_file()
            and path.stat().st_size == line.get("size")
            and file_sha256(path) == line.get("sha256")
        )

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            self._journal.write(json.dumps(line) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError as error:
            output_failed(self.staging / _JOURNAL, error)


__all__ = ["STAGING", "Target"]
