"""The manifest of a written checkpoint: what made it, from what, and the hash of every file and tensor.

It holds no time, host or path, so that equal runs write equal bytes. The source's fingerprint is cheap: it
covers names, sizes and headers of the weight files, ``config.json``, and 4 KiB from the middle of every
tensor, which tells apart checkpoints of one architecture. It is no proof that the rest of the source is
unchanged.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from mxfp4_core.checkpoint.files import MANIFEST, read_json_file
from mxfp4_core.checkpoint.header import damaged
from mxfp4_core.checkpoint.reader import Checkpoint

FORMAT = "mxfp4-manifest"
VERSION = 1
_SAMPLE = 4096


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint was made from, and what it is made of.

    Args:
        dialect: how the weights are stored.
        config: the settings as `Mxfp4Config.to_dict` gives them.
        config_sha256: `Mxfp4Config.fingerprint`.
        profile: resolved profile of the codes, empty when unknown.
        source: fingerprint of the source.
        files: ``{"size", "sha256"}`` of every file but the manifest, by path inside the folder.
        tensors: ``{"file", "dtype", "shape", "sha256"}`` of every tensor, by name.
    """

    dialect: str
    config: dict[str, Any]
    config_sha256: str
    profile: str
    source: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the file's content, the same bytes for the same manifest."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "tool": {"name": "mxfp4-core", "version": version("mxfp4-core")},
            "dialect": self.dialect,
            "profile": self.profile,
            "config": self.config,
            "config_sha256": self.config_sha256,
            "source": self.source,
            "files": dict(sorted(self.files.items())),
            "tensors": dict(sorted(self.tensors.items())),
        }
        return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder, None where there is none.

    Raises:
        CheckpointError: no valid manifest.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    content = read_json_file(path, folder)
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        seen = f"format {content.get('format')!r}, version {content.get('version')!r}"
        damaged(
            path, seen, f"a manifest is {FORMAT}, version {VERSION}", "read it with the release that wrote it"
        )
    texts = {key: content.get(key) for key in ("dialect", "config_sha256", "profile", "source")}
    tables = {key: content.get(key) for key in ("config", "files", "tensors")}
    rows = [*(tables["files"] or {}).values(), *(tables["tensors"] or {}).values()]
    if (
        not all(isinstance(value, str) for value in texts.values())
        or not all(isinstance(value, dict) for value in tables.values())
        or not all(isinstance(row, dict) and isinstance(row.get("sha256"), str) for row in rows)
    ):
        damaged(path, "parts that are missing or of the wrong kind", "a manifest is complete")
    for name in content["files"]:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
            fix = "do not use this checkpoint: it may be hostile"
            damaged(path, f"file {name!r}", "a manifest lists files of its own folder", fix)
    return Manifest(**texts, **tables)  # type: ignore[arg-type]  # checked above


def source_fingerprint(checkpoint: Checkpoint) -> str:
    """Return a sha256 that differs between checkpoints; see the module for what it covers.

    Raises:
        CheckpointError: the files changed since they were opened.
    """
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for file, header in checkpoint.files.items():
        digest.update(f"\n{file.name} {file.stat().st_size} {header}".encode())
    sample = memoryview(bytearray(_SAMPLE))
    for name, info in checkpoint.tensors.items():
        part = sample[: min(_SAMPLE, info.nbytes)]
        checkpoint.read_into(name, (info.nbytes - len(part)) // 2, part)
        digest.update(part)
    return digest.hexdigest()


__all__ = ["Manifest", "read_manifest", "source_fingerprint"]
