"""Check a written checkpoint: files, hashes, description, bytes; and, given its source, every code and scale."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from mxfp4_core.checkpoint.manifest import Manifest
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.checkpoint.tasks import Executor, run_tasks
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Contents, Entry
from mxfp4_core.errors import ConfigError
from mxfp4_core.jobs.against import Against, worst_first
from mxfp4_core.jobs.checks import FileCheck, FileFacts, Finding, high_precision
from mxfp4_core.jobs.described import describe_checkpoint
from mxfp4_core.jobs.opened import open_quantized, open_to_compare
from mxfp4_core.jobs.output import Report, counted
from mxfp4_core.jobs.pieces import logical_shape
from mxfp4_core.jobs.settled import settings_of
from mxfp4_core.jobs.units import QuantizeUnit
from mxfp4_core.jobs.verified import Verification, check_listed, found_manifest
from mxfp4_core.naming.resolver import Resolver

# Findings are told in this order, whichever file they are from.
_ORDER = {"manifest": 0, "scales": 1, "padding": 1, "source": 2}


def verify_checkpoint(
    path: str | Path,
    source: str | Path | None = None,
    *,
    against: str | Path | None = None,
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
        against: a checkpoint in high precision with the same tensors: the error of each weight is measured, however it
            was quantised, and what is kept is compared.
        profile: what the codes were made with, for files that do not say.
        models: who says what the weights of the source are: ``auto`` asks the installed model providers, ``none`` goes
            by names, a name asks that provider.
        progress: called with the bytes that have been checked and their total.
        executor: who checks the files: anything with the ``submit`` of `concurrent.futures`, such as `processes`
            gives; this process if None.

    Raises:
        CheckpointError: a damaged, incomplete or hostile file, in ``path`` or in ``source``.
        DialectError: no MXFP4 checkpoint, or a description that contradicts the tensors; or a ``source`` or
            ``against`` that is quantised itself.
        ConfigError: ``source`` is given, and neither the file nor ``profile`` says how the codes were made; or
            ``against`` is, and numba is not installed.
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
    manifest = found_manifest(checkpoint, result)
    check_listed(checkpoint, manifest, result)
    original = None if source is None else open_to_compare(source, "the source")
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
            resolver = Resolver.for_model(config, checkpoint.config, view=known_by.view, stored=True)
        fitting = _check_names(original, contents, result)
        weights = _source_units(original, contents, fitting, resolver, profile or known, config)
    beside = None if against is None else open_to_compare(against, "what errors are measured against")
    measured = frozenset[str]() if beside is None else _check_names(beside, contents, result)
    result.checks.append("scale bytes and padding")
    tasks = _tasks(checkpoint, original or beside, contents, weights, manifest, config)
    errors = _measuring(checkpoint, beside, contents, measured) if beside is not None else {}
    _run(tasks, errors, result, progress, executor)
    if beside is not None:
        result.checks.append(f"SQNR of {len(result.layers)} weights against {beside.path}")
    if original is not None:
        result.checks.append(
            f"{len(original.tensors)} tensors against the source, quantised by {profile or known}"
        )
    return result


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


def _measuring(
    checkpoint: Checkpoint, original: Checkpoint, contents: Contents, fitting: Set[str]
) -> dict[str, Against]:
    """Return a task for each file whose weights are measured."""
    by_file: dict[str, list[Entry]] = {}
    for name, entry in contents.entries.items():
        if name in fitting:
            by_file.setdefault(checkpoint.tensors[entry.names[0]].file.name, []).append(entry)
    return {f"against {file}": Against(checkpoint, original, tuple(here)) for file, here in by_file.items()}


def _run(
    tasks: Mapping[str, FileCheck],
    errors: Mapping[str, Against],
    result: Verification,
    progress: Report | None,
    executor: Executor | None,
) -> None:
    facts: dict[str, Any] = {}
    both: dict[str, FileCheck | Against] = {**tasks, **errors}
    add = counted(sum(task.source_bytes for task in both.values()), progress)
    run_tasks(both, facts.__setitem__, executor=executor, progress=add)
    smallest: list[tuple[str, int]] = []
    for name in tasks:  # in this order, whichever ended first
        found: FileFacts = facts[name]
        result.findings += found.findings
        result.notes += found.notes
        smallest += found.smallest
    if smallest:
        count = sum(number for _, number in smallest)
        told = f"{count} scale byte(s) 0 in {len(smallest)} tensor(s), for example {smallest[0][0]}"
        result.notes.append(
            f"{told}: factors of 2**-127, as blocks of zeros may have, which some kernels take for 0"
        )
    result.layers = worst_first([layer for name in errors for layer in facts[name]])
    result.findings.sort(key=lambda finding: _ORDER[finding.check])


def _source_units(
    original: Checkpoint,
    contents: Contents,
    fitting: Set[str],
    resolver: Resolver | None,
    profile: str,
    config: Mxfp4Config,
) -> dict[str, QuantizeUnit]:
    """Return how each weight that both checkpoints have in the same shape is quantised again."""
    units = {}
    for name, entry in contents.entries.items():
        if name in fitting:
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


def _check_names(original: Checkpoint, contents: Contents, result: Verification) -> frozenset[str]:
    """Find what only one of the two has, and return the weights that both have in the same shape."""
    entries, others = contents.entries, high_precision(contents)
    fitting = set()
    for name, info in original.tensors.items():
        if name in entries:
            entry = entries[name]
            shape = logical_shape(info.shape, transposed=entry.transposed)
            if shape == entry.shape:
                fitting.add(name)
            else:
                found = f"shape {list(entry.shape)}, {list(shape)} in the source"
                result.findings.append(Finding("source", name, found))
        elif name not in others:
            result.findings.append(Finding("source", name, "the tensor is missing"))
    for name in (entries.keys() | others.keys()) - original.tensors.keys():
        result.findings.append(Finding("source", name, "the source has no such tensor"))
    return frozenset(fitting)


__all__ = ["Finding", "Verification", "verify_checkpoint"]
