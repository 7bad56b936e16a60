"""What a verification has found, and what the manifest of the checkpoint says against its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxfp4_core.checkpoint.files import (
    INDEX_SUFFIX,
    MANIFEST,
    MARK,
    PICKLES,
    STAGING,
    index_of,
    inside,
)
from mxfp4_core.checkpoint.hashing import file_sha256
from mxfp4_core.checkpoint.manifest import Manifest, read_manifest
from mxfp4_core.checkpoint.others import HIDDEN
from mxfp4_core.checkpoint.places import is_folder, is_there
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.dialects.source import Source
from mxfp4_core.jobs.against import LayerError
from mxfp4_core.jobs.checks import Finding


@dataclass
class Verification:
    """What was checked and what was found.

    Args:
        path: the folder.
        dialect: how its weights are stored.
        profile: profile of the codes, empty when unknown.
        weights: quantised weights.
        format: theirs; several in the order of their names, with commas.
        checks: what was checked, in words.
        findings: what is wrong; empty for a good checkpoint.
        notes: what could not be checked, or is unusual and allowed.
        layers: the error of each weight, the worst first, where the checkpoint was measured against another one.
    """

    path: Path
    dialect: str
    profile: str
    weights: int
    format: str
    checks: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layers: list[LayerError] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return whether nothing is wrong."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        findings = [finding.__dict__ for finding in self.findings]
        layers = [layer.to_dict() for layer in self.layers]
        plain = {**self.__dict__, "path": str(self.path), "findings": findings, "layers": layers}
        return {"ok": self.ok, **plain}


def found_manifest(checkpoint: Checkpoint, result: Verification) -> Manifest | None:
    """Read the manifest, and say where it is missing.

    Raises:
        CheckpointError: no valid manifest, or one that was changed.
    """
    folder = is_folder(checkpoint.path)
    manifest = read_manifest(checkpoint.path) if folder else None
    if folder and is_there(checkpoint.path / STAGING):
        unfinished = f"{STAGING} holds the work of a run that did not finish"
        if manifest is None:
            found = f"{unfinished}; the same command completes it"
            result.findings.append(Finding("manifest", MANIFEST, f"the file is missing: {found}"))
        else:
            result.notes.append(unfinished)
    elif manifest is None and folder and (witness := _witness(checkpoint)):
        found = f"the file is missing, and with it every hash: {witness} says that there was one"
        result.findings.append(Finding("manifest", MANIFEST, found))
    elif manifest is None:
        result.notes.append(f"no {MANIFEST}: hashes are not checked")
    return manifest


def _witness(checkpoint: Checkpoint) -> str:
    """Return what says that a run of ours wrote the weights: they, or a file beside, name the manifest; else empty."""
    if is_there(checkpoint.path / MARK):
        return MARK
    source = Source.of(checkpoint)
    marked = any(said.get(MARK) for said in (source.metadata(), *(each.settings for each in source.gguf())))
    return "a weight file" if marked else ""


def check_listed(checkpoint: Checkpoint, manifest: Manifest | None, result: Verification) -> None:
    """Compare what holds no weights with the manifest, and the names of what does."""
    if manifest is None:
        return
    weights = {file.name for file in checkpoint.files}
    for name, facts in manifest.files.items():
        file = checkpoint.path / name
        if not file.is_file():
            result.findings.append(Finding("manifest", name, "the file is missing"))
        elif name not in weights and file_sha256(inside(file, checkpoint.path)) != facts["sha256"]:
            result.findings.append(Finding("manifest", name, "the file has another sha256"))
    for name, info in checkpoint.tensors.items():
        row = manifest.tensors.get(name)
        if row is None:
            result.findings.append(Finding("manifest", name, "the tensor is not in the manifest"))
        elif (row["file"], row["dtype"], tuple(row["shape"])) != (info.file.name, info.dtype, info.shape):
            told = f"{row['dtype']} {row['shape']} in {row['file']}"
            seen = f"{info.dtype} {list(info.shape)} in {info.file.name}"
            result.findings.append(Finding("manifest", name, f"{seen}, the manifest says {told}"))
    _name_surplus(checkpoint, manifest, result)
    result.checks.append(f"sha256 of {len(manifest.files)} files")


def _name_surplus(checkpoint: Checkpoint, manifest: Manifest, result: Verification) -> None:
    """Name files that the manifest does not list; weights among them are wrong, since a program may take them along."""
    index = index_of(checkpoint.path)
    present = [*checkpoint.files, *([index] if index else [])]
    names = [path.name for path in present] + [path.as_posix() for path in checkpoint.other_files]
    names += [name for name, why in checkpoint.left.items() if why != HIDDEN]
    for name in sorted(set(names) - manifest.files.keys()):
        found = "the file is not in the manifest"
        if name.endswith((".safetensors", ".gguf", INDEX_SUFFIX, *PICKLES)):
            result.findings.append(Finding("manifest", name, found))
        else:
            result.notes.append(f"{name}: {found}")


__all__ = ["Verification", "check_listed", "found_manifest"]
