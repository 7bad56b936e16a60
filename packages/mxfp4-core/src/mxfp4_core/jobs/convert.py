"""Convert a checkpoint: to another dialect, where codes and scales stay; and between MXFP4, FP8 and NVFP4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mxfp4_core import dialects
from mxfp4_core.checkpoint.assemble import DEFAULT_SHARD_BYTES, Unit
from mxfp4_core.checkpoint.manifest import Manifest, source_fingerprint
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.checkpoint.remote import place
from mxfp4_core.checkpoint.tasks import Executor
from mxfp4_core.config.messages import unknown_name
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Contents, Description, Dialect
from mxfp4_core.dialects.default import AUTO, default_for, read_by_model, warning_of
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs.again import Again, quantised_anew, without_activations
from mxfp4_core.jobs.described import describe_contents, is_refused, with_readers
from mxfp4_core.jobs.opened import open_any
from mxfp4_core.jobs.other_formats import OTHER_FORMATS, write_other_format
from mxfp4_core.jobs.output import (
    Report,
    Result,
    check_apart,
    content_of,
    linear_modules,
    loading_class,
    write_result,
)
from mxfp4_core.jobs.planned import check_expressible, stored_as
from mxfp4_core.jobs.settled import settings_of, with_profiles
from mxfp4_core.jobs.units import CopyUnit, PartsUnit

BESIDE = ("keep", "widen", "quantize")
"""What can become of weights in other kinds of quantisation that stand beside the MXFP4 ones."""


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    beside: str = "keep",
    activation: str | None = None,
    lossy: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    force: bool = False,
    update: bool = False,
    dry_run: bool = False,
    progress: Report | None = None,
    executor: Executor | None = None,
) -> Result:
    """Write an MXFP4 checkpoint in another dialect, or as FP8 or NVFP4; or an FP8 or NVFP4 checkpoint as MXFP4.

    Among dialects codes and scales stay as they are. To FP8 with blocks of 128 x 128 and to NVFP4 the values stay, or
    it is an error, unless ``lossy`` is set. From FP8, NVFP4 and FP-Quant weights are dequantised and quantised anew,
    by the default rule, which rounds: ``errors`` of the result has the signal to noise of each.

    Args:
        source: folder with a checkpoint in a dialect that is read, in FP8 or in NVFP4; this and the next may
            be remote.
        destination: folder for the result.
        to: dialect to write; ``auto`` for compressed-tensors where it can say everything, else our own; ``fp8`` or
            ``nvfp4``.
        beside: what becomes of weights in other kinds of quantisation beside the MXFP4 ones: ``keep`` them as they are,
            where the other dialect has a word for them, ``widen`` them to BF16, which is exact or an error, or
            ``quantize`` them to MXFP4, which rounds. A checkpoint that has nothing else is quantised.
        activation: how the result says that activations are quantised; as the source does if None. If given, static
            scales of activations are left out.
        lossy: whether values may be rounded on the way to FP8 or NVFP4.
        max_shard_bytes: most bytes of data in one file; a single weight may exceed it.
        force: replace a checkpoint in the destination, and discard what another run left there.
        update: as ``force``, but weight files that would come out the same are kept, those of the checkpoint in the
            destination and those of a run that another command began; only the others are written.
        dry_run: check everything that headers tell, and write nothing.
        progress: called with the bytes of the source that are done and their total.
        executor: who writes the files: anything with the ``submit`` of `concurrent.futures`, such as `processes`
            gives; this process if None. The bytes of the result do not depend on it.

    Raises:
        CheckpointError: a damaged, incomplete or hostile source.
        ConfigError: no such dialect, or another word for ``beside``.
        DialectError: a source in high precision or in a dialect that is not read, one that contradicts itself, or one
            that holds something for which the other dialect has no word; it names the tensor.
        OutputError: a destination that exists, is full, cannot be written or belongs to another run.
    """
    if beside not in BESIDE:
        raise unknown_name("beside", beside, BESIDE)
    folder = place(destination)
    named = None if to == AUTO or to in OTHER_FORMATS else dialects.get(to)
    check_apart(place(source), folder)
    checkpoint, origin, contents = open_any(source, "convert")
    model = checkpoint.config if contents.model is None else contents.model
    known = describe_contents(model, contents)
    view = known.view
    how: dict[str, Any] = {
        "model": "" if is_refused(view, contents.entries) else loading_class(model, known),
        "max_shard_bytes": max_shard_bytes,
        "force": force,
        "update": update,
        "dry_run": dry_run,
        "progress": progress,
        "executor": executor,
    }
    kinds = known.source if known.unknown or known.refused else ""
    if to in OTHER_FORMATS:
        result = write_other_format(
            checkpoint,
            with_readers(contents, view),
            OTHER_FORMATS[to],
            folder,
            widen=beside == "widen",
            lossy=lossy,
            how=how,
        )
        return replace(result, kinds=kinds)
    again = quantised_anew(contents, everything=beside == "quantize")
    contents = with_readers(again.contents, view)
    config, profile = settings_of(checkpoint, origin, contents)
    if activation is not None:
        config = Mxfp4Config.from_dict({**config.to_dict(), "activation": activation})
        contents = without_activations(contents)
    contents = replace(contents, entries=with_profiles(contents.entries, config, checkpoint.config))
    described = _described(checkpoint, contents, model, config, profile, beside)
    dialect, why = (named, "") if named is not None else default_for(described)
    config = config.model_copy(update={"dialect": dialect.name})
    silent = not dialect.can_say(profile)
    described = replace(described, config=config, profile="" if silent else profile)
    units = _units(checkpoint, contents, config, dialect, beside, model, again)
    manifest = Manifest(
        dialect.name, config.to_dict(), config.fingerprint(), profile, source_fingerprint(checkpoint)
    )
    documents, metadata = dialect.documents(described), dialect.metadata(described)
    content = content_of(checkpoint, units, documents, manifest, metadata, dialect.file, dialect.layout)
    entries = described.entries
    read = read_by_model(entries) is not None
    result = write_result(folder, content, dialect, len(entries), read=read, **how)
    notes = [f"{dialect.name} has no word for the profile {profile}: the manifest alone names it"]
    notes = [*(notes if silent else []), *dialect.notes(described)]
    notes += filter(None, [warning_of(dialect, entries), again.told if again.weights else ""])
    errors = {} if dry_run else again.errors(checkpoint, folder)
    formats = ", ".join(sorted({entry.format for entry in entries}))
    return replace(result, kinds=kinds, notes=tuple(notes), why=why, format=formats, errors=errors)


def _described(
    checkpoint: Checkpoint,
    contents: Contents,
    model: Mapping[str, Any],
    config: Mxfp4Config,
    profile: str,
    beside: str,
) -> Description:
    """Return what the documents of the result are written from, whatever its dialect."""
    entries = list(contents.entries.values())
    kept = {name: recipe.shape for name, recipe in contents.tensors.items()}
    kept |= {name: each.shape for name, each in contents.beside.items()}
    return Description(
        model,
        config,
        entries,
        linear_modules(kept, entries),
        profile,
        beside=() if beside == "widen" else tuple(contents.beside.values()),
        others=tuple(kept),
        static=tuple(contents.static),
        untold=frozenset(contents.untold),
        source=Source.of(checkpoint),
    )


def _units(
    checkpoint: Checkpoint,
    contents: Contents,
    config: Mxfp4Config,
    dialect: Dialect,
    beside: str,
    model: Mapping[str, Any],
    again: Again,
) -> list[Unit]:
    """Return one unit for each tensor or weight, in the order in which the source stores them."""
    place = {name: number for number, name in enumerate(checkpoint.tensors)}
    padding = config.model_copy(update={"tail": "pad"})
    units: list[tuple[int, Unit]] = []

    def add(kind: type[PartsUnit], stored: Mapping[str, Recipe]) -> None:
        names = list(dict.fromkeys(name for recipe in stored.values() for name in recipe.names))
        first = place[names[0]] if names else -1  # what is made of the settings alone goes first
        units.append((first, kind(checkpoint, tuple(stored.items()))))

    arranged = dialect.arrange(list(contents.entries.values()), model)
    if again.weights and dialect.file:
        raise DialectError(
            f"cannot convert {checkpoint.path} into the dialect {dialect.name}",
            seen=f"{len(again.weights)} weight(s) that are quantised anew",
            rule="what is quantised is written as it is made, and not in another order",
            fix=f"convert into mxfp4-core first, and that into {dialect.name}",
        )
    for entry in arranged:
        # Who quantised it knew that it is multiplied with.
        check_expressible(replace(entry, known=True), padding, dialect)
        if entry.weight in again.weights:
            names, layouts = stored_as(replace(entry, known=True), padding, dialect)
            unit = again.unit(checkpoint, entry.weight, names, layouts)
            units.append((place[again.weights[entry.weight].names[0]], unit))
            continue
        add(PartsUnit, dialect.write(entry))
    for name, recipe in dialect.write_others(contents.tensors, model).items():
        add(CopyUnit, {name: recipe})
    if contents.static:
        for name, recipe in dialect.write_static(contents.static).items():
            add(CopyUnit, {name: recipe})
    for each in contents.beside.values():
        add(CopyUnit, {each.weight: each.widened} if beside == "widen" else dialect.write_beside(each))
    units.sort(key=lambda pair: pair[0])
    return [unit for _, unit in units]


__all__ = ["convert_checkpoint"]
