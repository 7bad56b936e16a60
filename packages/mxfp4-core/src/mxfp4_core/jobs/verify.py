"""Check a written checkpoint: files, hashes, description, bytes; and, given its source, every code and scale."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxfp4_core.checkpoint.files import INDEX_SUFFIX, MANIFEST, PICKLES, STAGING, index_of, inside
from mxfp4_core.checkpoint.hashing import file_sha256
from mxfp4_core.checkpoint.manifest import Manifest, read_manifest
from mxfp4_core.checkpoint.others import HIDDEN
from mxfp4_core.checkpoint.reader import Checkpoint, open_checkpoint
from mxfp4_core.checkpoint.tasks import Executor, run_tasks
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Contents
from mxfp4_core.errors import ConfigError
from mxfp4_core.jobs.checks import FileCheck, FileFacts, Finding, high_precision
from mxfp4_core.jobs.convert import settings_of
from mxfp4_core.jobs.described import describe_checkpoint
from mxfp4_core.jobs.opened import open_quantized
from mxfp4_core.jobs.output import Report, counted
from mxfp4_core.jobs.units import QuantizeUnit
from mxfp4_core.naming.resolver import Resolver

# Findings are told in this order, whichever file they are from.
_ORDER = {"manifest": 0, "scales": 1, "padding": 1, "source": 2}


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
    """

    path: Path
    dialect: str
    profile: str
    weights: int
    format: str
    checks: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return whether nothing is wrong."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        findings = [finding.__dict__ for finding in self.findings]
        return {"ok": self.ok, **self.__dict__, "path": str(self.path), "findings": findings}


def verify_checkpoint(
    path: str | Path,
    source: str | Path | None = None,
    *,
    profile: str | None = None,
    models: str = "auto",
    progress: Report | None = None,
    executor: Executor | None = None,
) -> Verification:
    """Check a checkpoint. Each weight file is a task, whose memory is bounded as that of `quantize_checkpoint`.

    Args:
        path: folder with an MXFP4 checkpoint.
        source: the checkpoint in high precision that it was made from; its weights are quantised again and
            compared.
        profile: what the codes were made with, for files that do not say.
        models: who says what the weights of the source are: ``auto`` asks the installed model providers, ``none`` goes
            by names, a name asks that provider.
        progress: called with the bytes that have been checked and their total.
        executor: who checks the files: anything with the ``submit`` of `concurrent.futures`, such as `processes`
            gives; this process if None.

    Raises:
        CheckpointError: a damaged, incomplete or hostile file, in ``path`` or in ``source``.
        DialectError: no MXFP4 checkpoint, or a description that contradicts the tensors.
        ConfigError: ``source`` is given, and neither the file nor ``profile`` says how the codes were made.
    """
    checkpoint, dialect, contents = open_quantized(path, "verify")
    config, known = settings_of(checkpoint, dialect, contents)
    kinds = ", ".join(sorted({entry.format for entry in contents.entries.values()}))
    result = Verification(checkpoint.path, dialect.name, known, len(contents.entries), kinds)
    result.checks.append(f"headers of {len(checkpoint.files)} file(s) and the {dialect.name} description")
    if contents.static:
        first = next(iter(contents.static))
        told = f"{len(contents.static)} static scale(s) of activations, for example {first}"
        result.notes.append(f"{told}: data of calibration, which no source tells")
    manifest = _read_manifest(checkpoint, result)
    _check_small_files(checkpoint, manifest, result)
    original = None if source is None else open_checkpoint(source)
    weights: dict[str, QuantizeUnit] = {}
    if original is not None:
        if not (profile or known):
            raise ConfigError(
                "cannot quantise the source again",
                seen=f"a {dialect.name} checkpoint that does not say its profile",
                rule="the same profile gives the same bytes",
                fix="pass --profile, for example the name of the tool that wrote it",
            )
        resolver = None
        if not profile:
            known_by = describe_checkpoint(original, models)
            resolver = Resolver.for_model(config, checkpoint.config, view=known_by.view)
        weights = _source_units(original, contents, resolver, profile or known, config)
        _check_names(original, contents, weights, result)
    result.checks.append("scale bytes and padding")
    tasks = _tasks(checkpoint, original, contents, weights, manifest, config)
    _run(tasks, result, progress, executor)
    if original is not None:
        result.checks.append(
            f"{len(original.tensors)} tensors against the source, quantised by {profile or known}"
        )
    return result


def _read_manifest(checkpoint: Checkpoint, result: Verification) -> Manifest | None:
    folder = os.path.isdir(checkpoint.path)
    manifest = read_manifest(checkpoint.path) if folder else None
    if folder and os.path.lexists(checkpoint.path / STAGING):
        unfinished = f"{STAGING} holds the work of a run that did not finish"
        if manifest is None:
            found = f"{unfinished}; the same command completes it"
            result.findings.append(Finding("manifest", MANIFEST, f"the file is missing: {found}"))
        else:
            result.notes.append(unfinished)
    elif manifest is None:
        result.notes.append(f"no {MANIFEST}: hashes are not checked")
    return manifest


def _check_small_files(checkpoint: Checkpoint, manifest: Manifest | None, result: Verification) -> None:
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


def _tasks(
    checkpoint: Checkpoint,
    original: Checkpoint | None,
    contents: Contents,
    weights: Mapping[str, QuantizeUnit],
    manifest: Manifest | None,
    config: Mxfp4Config,
) -> dict[str, FileCheck]:
    tasks = {}
    others = high_precision(contents)
    for file in checkpoint.files:
        # What is made from tensors of several files counts to the first of them.
        here = [e for e in contents.entries.values() if checkpoint.tensors[e.names[0]].file == file]
        copies = [
            (name, recipe)
            for name, recipe in others.items()
            if original is not None
            and name in original.tensors
            and checkpoint.tensors[recipe.names[0]].file == file
        ]
        listed = manifest.tensors if manifest is not None else {}
        tasks[file.name] = FileCheck(
            checkpoint,
            file.absolute(),
            tuple(here),
            manifest.files.get(file.name, {}).get("sha256") if manifest is not None else None,
            {name: row["sha256"] for name, row in listed.items() if row.get("file") == file.name},
            config.nonfinite == "nan",
            tuple(weights[entry.weight] for entry in here if entry.weight in weights),
            tuple(copies),
            original,
        )
    return tasks


def _run(
    tasks: dict[str, FileCheck], result: Verification, progress: Report | None, executor: Executor | None
) -> None:
    facts: dict[str, FileFacts] = {}
    add = counted(sum(task.source_bytes for task in tasks.values()), progress)
    run_tasks(tasks, facts.__setitem__, executor=executor, progress=add)
    for name in tasks:  # in this order, whichever ended first
        result.findings += facts[name].findings
        result.notes += facts[name].notes
    result.findings.sort(key=lambda finding: _ORDER[finding.check])


def _source_units(
    original: Checkpoint,
    contents: Contents,
    resolver: Resolver | None,
    profile: str,
    config: Mxfp4Config,
) -> dict[str, QuantizeUnit]:
    """Return how each weight that both checkpoints have is quantised again."""
    units = {}
    for name, entry in contents.entries.items():
        if name in original.tensors:
            shape = original.tensors[name].shape
            chosen = (resolver.decide(name, shape).profile if resolver else None) or profile
            units[name] = QuantizeUnit(
                original,
                name,
                tuple(entry.parts),
                chosen,
                config.nonfinite,
                entry.transposed,
                entry.format,
            )
    return units


def _check_names(
    original: Checkpoint, contents: Contents, weights: dict[str, QuantizeUnit], result: Verification
) -> None:
    """Find what only one of the two has; a weight of another shape is not compared any further."""
    entries, others = contents.entries, high_precision(contents)
    for name in original.tensors:
        if name in entries:
            entry, shape = entries[name], weights[name].shape
            if shape != entry.shape:
                found = f"shape {list(entry.shape)}, {list(shape)} in the source"
                result.findings.append(Finding("source", name, found))
                del weights[name]
        elif name not in others:
            result.findings.append(Finding("source", name, "the tensor is missing"))
    for name in (entries.keys() | others.keys()) - original.tensors.keys():
        result.findings.append(Finding("source", name, "the source has no such tensor"))


__all__ = ["Finding", "Verification", "verify_checkpoint"]
