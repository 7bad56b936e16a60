"""What lies in the destination of a run: what is in the way, and what an earlier run wrote and may be removed."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mxfp4_core.checkpoint.files import STAGING
from mxfp4_core.checkpoint.hashing import file_sha256
from mxfp4_core.checkpoint.journal import refused
from mxfp4_core.checkpoint.manifest import read_manifest
from mxfp4_core.checkpoint.sinks import output_failed
from mxfp4_core.errors import CheckpointError, OutputError

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".gguf")


def check_existing(folder: Path, names: Collection[str], *, resumes: bool, force: bool) -> set[str]:
    """Refuse a destination with something in it that must not be overwritten.

    Args:
        folder: the destination.
        names: every file that the run writes.
        resumes: whether an earlier attempt at the same may have put some of them there.
        force: replace files.

    Returns:
        Files of an earlier run that the new checkpoint lacks; they are removed at its end.

    Raises:
        OutputError: no folder, files where nothing is to be replaced, weights that no manifest lists.
    """
    if not os.path.lexists(folder):
        return set()
    if not os.path.isdir(folder):
        raise OutputError(
            f"cannot write into {folder}",
            seen="a file",
            rule="the destination is a folder",
            fix="choose a folder",
        )
    try:
        present = {path.name for path in folder.iterdir()} - {STAGING}
    except OSError as error:
        output_failed(folder, error)
    expected = {name.split("/", 1)[0] for name in names} if resumes else set[str]()
    if not force and (unexpected := present - expected):
        raise OutputError(
            f"cannot write into {folder}",
            seen=f"{len(unexpected)} entries, for example {min(unexpected)!r}",
            rule="nothing is overwritten unless asked for",
            fix="choose another destination, or pass --force to replace the checkpoint in it",
        )
    owned = _owned(folder)
    stale = {name for name in owned.keys() - set(names) if _is_ours(folder, name, owned[name])}
    if weights := {name for name in present if name.endswith(_WEIGHTS)} - owned.keys() - set(names):
        raise OutputError(
            f"cannot write into {folder}",
            seen=f"weights that mxfp4 did not write: {min(weights)}",
            rule="only files that are listed in a manifest are removed",
            fix="remove them yourself, or choose another destination",
        )
    return stale


def inside_destination(folder: Path, name: str) -> Path:
    """Return the path of a file in the destination, no folder on the way to it being a link.

    Raises:
        OutputError: one is.
    """
    path = folder / name
    for parent in path.relative_to(folder).parents:
        if (folder / parent).is_symlink() and parent != Path():
            raise refused(folder / parent, "a link to a folder")
    return path


def _owned(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        manifest = read_manifest(folder)
    except CheckpointError:
        return {}
    return manifest.files if manifest else {}


def _is_ours(folder: Path, name: str, facts: Mapping[str, Any]) -> bool:
    """Return whether a file is as an earlier run wrote it; what somebody has edited since is theirs."""
    path = inside_destination(folder, name)
    if name.endswith(_WEIGHTS) or not path.is_file() or path.is_symlink():
        return name.endswith(_WEIGHTS)
    return path.stat().st_size == facts.get("size") and file_sha256(path) == facts["sha256"]


__all__ = ["check_existing", "inside_destination"]
