"""The download cache of huggingface_hub: where a name on the Hub is on this machine, and which links belong to it.

Its layout is ``models--OWNER--NAME/{refs,blobs,snapshots/REVISION}``; the files of a snapshot, at any depth, are links
into ``blobs``. Nothing is ever downloaded. Source:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mxfp4_core.checkpoint.remote import RemotePath, place
from mxfp4_core.errors import CheckpointError

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[0-9A-Za-z._-]{1,100}")


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return the file or folder that is meant: the path, or else the snapshot of a model of this name on the Hub.

    Args:
        path: a path, also ``scheme://`` as fsspec knows it;
            or ``OWNER/NAME`` as on the Hub, and after it a subfolder such as ``transformer``.

    Returns:
        The path as it is where it exists, or where the cache has no such model either.

    Raises:
        CheckpointError: the cache has several revisions of the model, and none of them is ``main``.
    """
    given = place(path)
    if isinstance(given, RemotePath) or os.path.lexists(given):
        return given
    repository = hub_name(path)
    if repository is None:
        return given
    snapshot = _snapshot(repository)
    rest = str(path).removeprefix(repository).strip("/")
    return given if snapshot is None else snapshot / rest


def hub_name(path: str | os.PathLike[str]) -> str | None:
    """Return the part of a text that may be the name of a model on the Hub; None where it can be none."""
    parts = str(path).split("/")
    if not all(_PART.fullmatch(part) for part in parts):
        return None
    return "/".join(parts[:2])


def cache_folder() -> Path:
    """Return the folder of the cache, by the environment variables of huggingface_hub."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if found := os.environ.get(variable):
            return Path(found).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def blobs_of(folder: Path) -> Path | None:
    """Return the folder into which links of a snapshot lead; None where a folder lies in no snapshot.

    Args:
        folder: a resolved path: ``snapshots/REVISION`` of a model in a cache, or a folder below it.
    """
    for each in (folder, *folder.parents):
        model = each.parent.parent
        if each.parent.name == "snapshots" and model.name.startswith("models--"):
            blobs = model / "blobs"
            return None if blobs.is_symlink() else blobs
    return None


def _snapshot(repository: str) -> Path | None:
    model = cache_folder() / f"models--{repository.replace('/', '--')}"
    try:
        revision = (model / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        revision = ""
    if _REVISION.fullmatch(revision) and (model / "snapshots" / revision).is_dir():
        return model / "snapshots" / revision
    try:
        found = sorted(path for path in (model / "snapshots").iterdir() if path.is_dir())
    except OSError:
        return None
    if len(found) > 1:
        raise CheckpointError(
            f"cannot tell which revision of {repository} is meant",
            seen=f"{len(found)} in {model / 'snapshots'}, and no refs/main",
            rule="a name means the revision main, or the only one in the cache",
            fix="pass the folder of the revision",
        )
    return found[0] if found else None


__all__ = ["blobs_of", "cache_folder", "hub_name", "local_path"]
