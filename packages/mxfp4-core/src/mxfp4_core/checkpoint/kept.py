"""Weight files that a run need not write, since the same work has made them: of the checkpoint, or of another run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mxfp4_core.checkpoint.existing import inside_destination
from mxfp4_core.checkpoint.hashing import file_sha256
from mxfp4_core.checkpoint.manifest import read_manifest
from mxfp4_core.errors import CheckpointError

KEPT = ".kept"
"""Suffix of such a file until the run begins."""


def kept_files(
    folder: Path, staging: Path, earlier: Sequence[Mapping[str, Any]], works: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Put what can be kept into the staging folder, under its new name and `KEPT`: a link, or else a copy.

    A file counts when its bytes have the hash that was noted for them.

    Args:
        folder: the destination.
        staging: the folder for unfinished files.
        earlier: what the journal of another run says about its shards.
        works: hash of the work for each weight file of this run.

    Returns:
        Facts about each file, by its new name.

    Raises:
        OSError: it can be neither linked nor copied.
        OutputError: a folder in the destination is a link.
    """
    for left in staging.glob(f"*{KEPT}"):
        left.unlink()
    found: dict[str, dict[str, Any]] = {}
    if not any(works.values()):
        return found
    there = {
        line["work"]: (path, line) for path, line in _noted(folder, staging, earlier) if line.get("work")
    }
    for name, work in works.items():
        path, line = there.get(work, (folder, {}))
        if not line or path.is_symlink() or not path.is_file():
            continue
        if path.stat().st_size != line["size"] or file_sha256(path) != line["sha256"]:
            continue
        place = staging / f"{name}{KEPT}"
        try:
            os.link(path, place)
        except OSError:  # a file system without links
            shutil.copyfile(path, place)
        found[name] = {key: line[key] for key in ("size", "sha256", "tensors", "work")}
    return found


def _noted(
    folder: Path, staging: Path, earlier: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield what the manifest and the journal say about weight files, and where these are."""
    try:
        manifest = read_manifest(folder) if folder.is_dir() else None
    except CheckpointError:
        manifest = None
    tensors: dict[str, dict[str, str]] = {}
    for name, row in manifest.tensors.items() if manifest is not None else ():
        tensors.setdefault(row["file"], {})[name] = row["sha256"]
    for name, facts in manifest.files.items() if manifest is not None else ():
        if name in tensors:
            yield inside_destination(folder, name), {**facts, "tensors": tensors[name]}
    for line in earlier:
        shard = str(line.get("shard"))
        if shard == os.path.basename(shard) and isinstance(line.get("tensors"), dict):
            path = staging / shard
            yield (path if os.path.lexists(path) else folder / shard), line


__all__ = ["KEPT", "kept_files"]
