"""What every destination of a run is told and remembers, wherever it lies: a folder of this machine, or a bucket."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from mxfp4_core.checkpoint.files import MANIFEST, STAGING
from mxfp4_core.checkpoint.manifest import Manifest
from mxfp4_core.errors import CheckpointError, Mxfp4Error, OutputError

Place = TypeVar("Place", bound=Path)


class RunFolder(Generic[Place]):
    """The folder of one run.

    Finished shards stay for the next attempt after an interruption, a full disk or a source that could not be read.
    They are removed after an error about a weight, which the same command would only meet again.

    Args:
        folder: where the checkpoint appears.
        run: what identifies the run; another one does not continue it.
        names: every file that the run writes, the manifest included.
        copies: those of them that are copied from the source.
        seen: what tells the files of the source from others that take their place.
        force: discard what another run left; and replace a checkpoint, where that can be done whole.
        works: if given, replace files, and keep those weight files, of the folder or of another run, that were made by
            the same work, as a hash for each file of this run says.

    Attributes:
        run: hash of what identifies the run, as its manifest has it.
        staging: the subfolder for what is unfinished.
        finished: facts about each shard that is complete, by its name.
        complete: the manifest, where an earlier attempt had done everything but clean up after itself.
    """

    def __init__(
        self,
        folder: Place,
        run: Mapping[str, str],
        names: Collection[str],
        *,
        copies: Collection[str] = (),
        seen: str = "",
        force: bool,
        works: Mapping[str, str] | None = None,
    ) -> None:
        self.folder: Place = folder
        self.staging: Place = folder / STAGING
        self.run = hashlib.sha256(json.dumps(dict(run), sort_keys=True).encode()).hexdigest()
        self.finished: dict[str, dict[str, Any]] = {}
        self.complete: Manifest | None = None
        self._run: dict[str, Any] = {"run": dict(run), "seen": seen}
        self._names, self._copies = set(names), set(copies)
        self._force, self._updates, self._works = force or works is not None, works is not None, works or {}
        self._prepare()

    def _prepare(self) -> None:
        """Set what a kind of destination has of its own, and refuse what it cannot do."""

    def _is_mine(self, earlier: Mapping[str, Any] | None) -> bool:
        """Return whether what an unfinished run has noted about itself is of the same command."""
        return earlier is not None and earlier.get("run") == self._run["run"]

    def _refuse_other(self, shards: int) -> NoReturn:
        """Raise the error for another command's unfinished work.

        Args:
            shards: how many of its shards are complete.
        """
        raise OutputError(
            f"cannot write into {self.folder}",
            seen=f"{STAGING} with {shards} finished shard(s) of another run",
            rule="a run continues only with the same source, settings and release",
            fix="run the first command again, or discard its work with --force",
        )

    def _is_result(self, found: Manifest) -> bool:
        """Return whether a manifest is the one of this run, and lists all of its files."""
        return found.run == self.run and found.files.keys() | {MANIFEST} == self._names

    def _stays(self, error: BaseException | None) -> bool:
        """Return whether finished shards are of use to the next attempt, after this error."""
        hopeless = isinstance(error, Mxfp4Error) and not isinstance(error, OutputError | CheckpointError)
        return bool(self.finished) and not hopeless


__all__ = ["RunFolder"]
