"""Quantise a checkpoint file to file: headers, decisions, units. The model is never built.

What can go wrong by names, shapes and dtypes goes wrong before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mxfp4_core.checkpoint.assemble import DEFAULT_SHARD_BYTES, Unit
from mxfp4_core.checkpoint.manifest import Manifest, source_fingerprint
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.checkpoint.remote import place
from mxfp4_core.checkpoint.tasks import Executor
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Dialect, Entry
from mxfp4_core.dialects.default import read_by_model
from mxfp4_core.dialects.recipes import Read
from mxfp4_core.errors import ConfigError, DialectError, FormatError, check_type
from mxfp4_core.jobs.described import describe_checkpoint, is_refused, notes_of
from mxfp4_core.jobs.opened import open_high_precision
from mxfp4_core.jobs.output import Report, Result, check_apart, content_of, loading_class, write_result
from mxfp4_core.jobs.planned import chosen, decided, description, planned_as, stored_as
from mxfp4_core.jobs.units import CopyUnit, QuantizeUnit
from mxfp4_core.naming.decision import Decision
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.naming.orientation import k_first
from mxfp4_core.naming.resolver import Resolver
from mxfp4_core.naming.view import ModelView

FLOATS = ("BF16", "F16", "F32")
"""Dtypes that are quantised."""


def quantize_checkpoint(
    source: str | Path,
    destination: str | Path,
    config: Mxfp4Config | None = None,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    force: bool = False,
    update: bool = False,
    dry_run: bool = False,
    models: str = "auto",
    progress: Report | None = None,
    executor: Executor | None = None,
) -> Result:
    """Quantise the weights of a checkpoint into a new one.

    Memory stays below a few chunks of 32 MiB (where K is stored before N, the parts of one matrix beside them) and the
    scales of one weight, whatever the size of the model; with an executor, in each worker. A run that was
    interrupted is continued by the same call.

    Args:
        source: folder with safetensors files in high precision; this and the next may be remote, ``s3://bucket/model``.
        destination: folder for the result; it appears complete or not at all.
        config: what to quantise, how, and in which dialect to write it.
        max_shard_bytes: most bytes of data in one file; a single weight may exceed it.
        force: replace a checkpoint in the destination, and discard what another run left there.
        update: as ``force``, but weight files that would come out the same are kept, those of the checkpoint in the
            destination and those of a run that another command began; only the others are written.
        dry_run: check everything that headers tell, and write nothing.
        models: who says what the weights are: ``auto`` asks the installed model providers, ``none`` goes by names, a
            name asks that provider.
        progress: called with the bytes of the source that are done and their total.
        executor: who writes the files: anything with the ``submit`` of `concurrent.futures`, such as `processes`
            gives; this process if None. The bytes of the result do not depend on it.

    Raises:
        CheckpointError: a damaged, incomplete or hostile source.
        DialectError: a source that is quantised already, or weights that the dialect cannot express.
        PatternError: a pattern that matches nothing, or splits a fused module.
        FormatError: a weight of integers.
        ShapeError: K is no multiple of 32 and ``tail`` is ``refuse``.
        NonFiniteError: NaN or infinity, and ``nonfinite`` is ``refuse``.
        ConfigError: nothing is left to quantise, or no model provider has that name.
        ModelError: two model providers claim the model, or the named one cannot say.
        OutputError: a destination that exists, is full, cannot be written or belongs to another run.
    """
    check_type(source, (str, os.PathLike), "the path of a checkpoint")
    check_type(destination, (str, os.PathLike), "destination")
    config, folder = config or Mxfp4Config.from_dict({}), place(destination)
    check_type(config, Mxfp4Config, "config")
    check_apart(place(source), folder)
    checkpoint = open_high_precision(source)
    known = describe_checkpoint(checkpoint, models)
    decisions, weights = planned_weights(checkpoint, config, known.view)
    entries = [entry for entry, _ in weights.values()]
    dialect, why = chosen(checkpoint, config, entries)
    config = config.model_copy(update={"dialect": dialect.name})
    units = quantize_units(checkpoint, config, dialect, weights)
    described = description(checkpoint, config, entries)
    documents = dialect.documents(described)
    profile = config.resolved_profile()
    manifest = Manifest(
        dialect.name, config.to_dict(), config.fingerprint(), profile, source_fingerprint(checkpoint)
    )
    content = content_of(
        checkpoint, units, documents, manifest, dialect.metadata(described), layout=dialect.layout
    )
    result = write_result(
        folder,
        content,
        dialect,
        len(entries),
        model="" if is_refused(known.view, weights) else loading_class(checkpoint.config, known),
        read=read_by_model(entries) is not None,
        max_shard_bytes=max_shard_bytes,
        force=force,
        update=update,
        dry_run=dry_run,
        progress=progress,
        executor=executor,
    )
    notes = notes_of(checkpoint, known.view, decisions)
    formats = ", ".join(sorted({entry.format for entry in entries}))
    notes = (*notes, *dialect.notes(described))
    return replace(result, kinds=known.source, notes=notes, why=why, format=formats)


def planned_weights(
    checkpoint: Checkpoint, config: Mxfp4Config, view: ModelView | None
) -> tuple[list[Decision], dict[str, tuple[Entry, str]]]:
    """Decide about every tensor, and return that, with the entry and the profile of each that is quantised, by name.

    Args:
        checkpoint: in high precision.
        config: what to quantise.
        view: what a model provider says; None where names decide.

    Raises:
        PatternError, FormatError, ConfigError: as `quantize_checkpoint`.
    """
    resolver = Resolver.for_model(config, checkpoint.config, view=view)
    infos, facts = list(checkpoint.tensors.values()), ModelFacts.read(checkpoint.config)
    decisions = decided(resolver, infos)
    found: dict[str, tuple[Entry, str]] = {}
    for info, decision in zip(infos, decisions, strict=True):
        if not decision.quantize:
            continue
        if info.dtype not in FLOATS:
            raise FormatError(
                f"tensor {info.name!r} cannot be quantised",
                seen=f"dtype {info.dtype}, shape {list(info.shape)}",
                rule=f"a weight is one of {', '.join(FLOATS)}",
                fix="add its name to ignore, or convert the source",
            )
        first = k_first(info.name, info.shape, facts, view)
        entry = planned_as(info, decision, first, facts.model_type, config, view)
        found[info.name] = entry, decision.profile or ""
    if not found:
        raise ConfigError(
            f"nothing to quantise in {checkpoint.path}",
            seen=f"{len(infos)} tensors, all of them kept",
            rule="at least one weight becomes MXFP4",
            fix="see the reasons with `mxfp4 plan`, and change targets, ignore or overrides",
        )
    return decisions, found


def quantize_units(
    checkpoint: Checkpoint,
    config: Mxfp4Config,
    dialect: Dialect,
    weights: Mapping[str, tuple[Entry, str]],
) -> list[Unit]:
    """Return one unit for each tensor of the source.

    Args:
        checkpoint: in high precision.
        config: the settings.
        dialect: how the parts are stored.
        weights: entry and profile of each weight that is quantised, by name; all others are copied.

    Raises:
        ShapeError, DialectError: as `quantize_checkpoint`.
    """
    units: list[Unit] = []
    high = {n: Read(info.dtype, info.shape, n) for n, info in checkpoint.tensors.items() if n not in weights}
    others = dialect.write_others(high, checkpoint.config)
    if others.keys() != high.keys():
        moved = next(name for name in high if name not in others)
        raise DialectError(
            f"tensor {moved!r} cannot be stored in the dialect {dialect.name} while others are quantised",
            seen="another name in that dialect",
            rule="quantising copies what is not quantised as it is",
            fix=f"quantise into mxfp4-core, then `mxfp4 convert --to {dialect.name}`",
        )
    for name in checkpoint.tensors:
        if name not in weights:
            units.append(CopyUnit(checkpoint, ((name, others[name]),)))
            continue
        entry, profile = weights[name]
        names, layouts = stored_as(entry, config, dialect)
        unit = QuantizeUnit(
            checkpoint, name, names, profile, config.nonfinite, entry.transposed, entry.format, layouts
        )
        units.append(unit)
    return units


__all__ = ["FLOATS", "planned_weights", "quantize_checkpoint", "quantize_units"]
