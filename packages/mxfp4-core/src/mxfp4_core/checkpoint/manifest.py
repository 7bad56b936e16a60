"""The manifest of a written checkpoint: what made it, from what, and the hash of every file and tensor.

It holds no time, host or path, so that equal runs write equal bytes. The source's fingerprint is cheap: it
covers names, sizes and headers of the weight files, ``config.json``, and 4 KiB from the middle of every
tensor, which tells apart checkpoints of one architecture. It is no proof that the rest of the source is
unchanged.

It holds a hash of itself, too: that of its bytes with zeros in the place of this hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from mxfp4_core.checkpoint.files import MANIFEST, read_small_file
from mxfp4_core.checkpoint.header import damaged, parse_json
from mxfp4_core.checkpoint.places import is_there
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.checkpoint.remote import RemotePath, read_many

FORMAT = "mxfp4-manifest"
VERSION = 2
"""Version 1 had no hash of itself and no files that were left behind; it is read."""

_ZEROS = "0" * 64
_LONGEST_NAME = 255  # bytes, on every file system that is in use
_SAMPLE = 4096
_AT_ONCE = 256  # samples of a remote checkpoint


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint was made from, and what it is made of.

    Args:
        dialect: how the weights are stored.
        config: the settings as `Mxfp4Config.to_dict` gives them.
        config_sha256: `Mxfp4Config.fingerprint`.
        profile: resolved profile of the codes, empty when unknown.
        source: fingerprint of the source.
        run: what identifies the run that wrote it, as a hash.
        left: files of the source that the checkpoint does not have, and why.
        files: ``{"size", "sha256"}`` of every file but the manifest, by path inside the folder; of weight files also
            ``work``, a hash of all that decides about their bytes.
        tensors: ``{"file", "dtype", "shape", "sha256"}`` of every tensor, by name.
    """

    dialect: str
    config: dict[str, Any]
    config_sha256: str
    profile: str
    source: str
    run: str = ""
    left: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the file's content, the same bytes for the same manifest."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "sha256": _ZEROS,
            "tool": {"name": "mxfp4-core", "version": version("mxfp4-core")},
            "dialect": self.dialect,
            "profile": self.profile,
            "config": self.config,
            "config_sha256": self.config_sha256,
            "source": self.source,
            "run": self.run,
            "left_behind": dict(sorted(self.left.items())),
            "files": dict(sorted(self.files.items())),
            "tensors": dict(sorted(self.tensors.items())),
        }
        text = json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
        return text.replace(_ZEROS.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder, None where there is none.

    Raises:
        CheckpointError: no valid manifest, or one that was changed.
    """
    path = folder / MANIFEST
    if not is_there(path):
        return None
    raw = read_small_file(path, folder)
    content = parse_json(raw, path)
    if content.get("format") != FORMAT or content.get("version") not in (1, VERSION):
        seen = f"format {content.get('format')!r}, version {content.get('version')!r}"
        damaged(
            path,
            seen,
            f"a manifest is {FORMAT}, version 1 or {VERSION}",
            "read it with the release that wrote it",
        )
    texts = {key: content.get(key) for key in ("dialect", "config_sha256", "profile", "source")}
    texts["run"] = content.get("run", "")
    tables = {key: content.get(key) for key in ("config", "files", "tensors")}
    tables["left"] = content.get("left_behind", {})
    if (
        not all(isinstance(value, str) for value in texts.values())
        or not all(isinstance(value, dict) for value in tables.values())
        or not all(isinstance(why, str) for why in content.get("left_behind", {}).values())
        or not all(map(_is_file_row, content["files"].values()))
        or not all(map(_is_tensor_row, content["tensors"].values()))
    ):
        damaged(path, "parts that are missing or of the wrong kind", "a manifest is complete")
    for name in content["files"]:
        parts = PurePosixPath(name).parts
        long = any(len(part.encode()) > _LONGEST_NAME for part in parts)
        if not parts or parts[0] == "/" or ".." in parts or "\0" in name or long:
            fix = "do not use this checkpoint: it may be hostile"
            damaged(path, f"file {name!r}", "a manifest lists files of its own folder", fix)
    if content["version"] == VERSION and not _is_unchanged(raw, content.get("sha256")):
        rule = "a manifest has the hash of itself"
        damaged(path, "bytes that were changed since it was written", rule, "get the files again")
    return Manifest(**texts, **tables)  # type: ignore[arg-type]  # checked above


def _is_file_row(row: object) -> bool:
    return isinstance(row, dict) and type(row.get("size")) is int and isinstance(row.get("sha256"), str)


def _is_tensor_row(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("shape"), list):
        return False
    texts = all(isinstance(row.get(key), str) for key in ("file", "dtype", "sha256"))
    return texts and all(type(size) is int for size in row["shape"])


def _is_unchanged(raw: bytes, stated: object) -> bool:
    if not isinstance(stated, str) or len(stated) != len(_ZEROS):
        return False
    plain = raw.replace(stated.encode(), _ZEROS.encode(), 1)
    return hashlib.sha256(plain).hexdigest() == stated


def source_fingerprint(checkpoint: Checkpoint) -> str:
    """Return a sha256 that differs between checkpoints; see the module for what it covers.

    Raises:
        CheckpointError: the files changed since they were opened.
    """
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for file, header in checkpoint.files.items():
        digest.update(f"\n{file.name} {file.stat().st_size} {header}".encode())
    for _, part in _samples(checkpoint):
        digest.update(part)
    return digest.hexdigest()


def tensor_samples(checkpoint: Checkpoint) -> dict[str, str]:
    """Return for each tensor a hash of its dtype, its shape and 4 KiB from its middle.

    Raises:
        CheckpointError: the files changed since they were opened.
    """
    found = {}
    for name, part in _samples(checkpoint):
        info = checkpoint.tensors[name]
        found[name] = hashlib.sha256(f"{info.dtype} {info.shape} ".encode() + part).hexdigest()
    return found


def _samples(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    """Yield 4 KiB from the middle of every tensor; of remote ones many at once, since each request takes its time."""
    remote: list[tuple[str, tuple[RemotePath, int, int]]] = []

    def fetched() -> Iterator[tuple[str, bytes]]:
        parts = read_many([where for _, where in remote])
        yield from zip([name for name, _ in remote], parts, strict=True)
        remote.clear()

    for name, info in checkpoint.tensors.items():
        size = min(_SAMPLE, info.nbytes)
        start = (info.nbytes - size) // 2
        if isinstance(info.file, RemotePath) and size:
            remote.append((name, (info.file, info.start + start, info.start + start + size)))
            if len(remote) == _AT_ONCE:
                yield from fetched()
            continue
        yield from fetched()
        part = bytearray(size)
        checkpoint.read_into(name, start, memoryview(part))
        yield name, bytes(part)
    yield from fetched()


__all__ = ["Manifest", "read_manifest", "source_fingerprint", "tensor_samples"]
