"""Convert a checkpoint: to another dialect, where codes and scales stay; and between MXFP4, FP8 and NVFP4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mxfp4_core import dialects
from mxfp4_core.checkpoint.assemble import DEFAULT_SHARD_BYTES, Unit
from mxfp4_core.checkpoint.manifest import Manifest, read_manifest, source_fingerprint
from mxfp4_core.checkpoint.places import is_folder
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.checkpoint.remote import place
from mxfp4_core.checkpoint.tasks import Executor
from mxfp4_core.config.known import NATIVE_NAME
from mxfp4_core.config.messages import unknown_name
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Contents, Description, Dialect, Entry
from mxfp4_core.dialects.beside import Narrow
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
from mxfp4_core.jobs.units import CopyUnit, PartsUnit
from mxfp4_core.naming.resolver import Resolver

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
    how: dict[str, Any] = {
        "max_shard_bytes": max_shard_bytes,
        "force": force,
        "update": update,
        "dry_run": dry_run,
        "progress": progress,
        "executor": executor,
    }
    checkpoint, origin, contents = open_any(source, "convert")
    model = checkpoint.config if contents.model is None else contents.model
    known = describe_contents(model, contents)
    view = known.view
    how["model"] = "" if is_refused(view, contents.entries) else loading_class(model, known)
    kinds = known.source if known.unknown else ""
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
    contents = replace(contents, entries=_with_profiles(contents.entries, config, checkpoint.config))
    entries = list(contents.entries.values())
    kept = {name: recipe.shape for name, recipe in contents.tensors.items()}
    kept |= {name: each.shape for name, each in contents.beside.items()}
    left = () if beside == "widen" else tuple(contents.beside.values())
    described = Description(
        model,
        config,
        entries,
        linear_modules(kept, entries),
        profile,
        left,
        tuple(kept),
        tuple(contents.static),
        frozenset(contents.untold),
        Source.of(checkpoint),
    )
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
    how["read"] = read_by_model(entries) is not None
    result = write_result(folder, content, dialect, len(entries), **how)
    notes = [f"{dialect.name} has no word for the profile {profile}: the manifest alone names it"]
    notes = [*(notes if silent else []), *dialect.notes(described)]
    notes += filter(None, [warning_of(dialect, entries)])
    if again.weights:
        notes.append(again.told)
    errors = {} if dry_run else again.errors(checkpoint, folder)
    formats = ", ".join(sorted({entry.format for entry in entries}))
    return replace(result, kinds=kinds, notes=tuple(notes), why=why, format=formats, errors=errors)


def settings_of(
    checkpoint: Checkpoint, dialect: Dialect | None, contents: Contents
) -> tuple[Mxfp4Config, str]:
    """Return the config that describes a quantised checkpoint, and the profile of its codes ("" if unknown).

    The manifest says both, if it belongs to these files. Otherwise a dialect that stores the whole config says it; for
    others the config is made so that it decides about every name as the file does.

    Raises:
        ConfigError: settings in the file that are not valid.
    """
    if dialect is None:
        return _derived_config(checkpoint, NATIVE_NAME, contents), contents.profile
    manifest = read_manifest(checkpoint.path) if is_folder(checkpoint.path) else None
    if manifest is not None and manifest.dialect == dialect.name and _describes(manifest, checkpoint):
        left = () if contents.says_activation else ("activation",)
        said = {key: value for key, value in manifest.config.items() if key not in left}
        return Mxfp4Config.from_dict(said), manifest.profile
    settings = dialect.settings(checkpoint.config.get("quantization_config") or {})
    if settings is not None:
        return Mxfp4Config.from_dict(settings), contents.profile
    return _derived_config(checkpoint, dialect.name, contents), contents.profile


def _with_profiles(
    entries: Mapping[str, Entry], config: Mxfp4Config, model: Mapping[str, Any]
) -> dict[str, Entry]:
    """Return weights that are not in the format of the config with the profiles that its overrides give them."""
    if len(config.formats()) == 1:
        return dict(entries)
    resolver, found = Resolver.for_model(config, model, fused={}, stored=True), dict(entries)
    for weight, entry in entries.items():
        decision = resolver.decide(weight, entry.shape)
        if decision.quantize and decision.format == entry.format != config.format and not entry.profile:
            found[weight] = replace(entry, profile=decision.profile or "")
    return found


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


def _describes(manifest: Manifest, checkpoint: Checkpoint) -> bool:
    def facts(row: Mapping[str, Any]) -> tuple[object, ...]:
        return row.get("file"), row.get("dtype"), tuple(row.get("shape") or ())

    wanted = {name: facts(row) for name, row in manifest.tensors.items()}
    return wanted == {n: (info.file.name, info.dtype, info.shape) for n, info in checkpoint.tensors.items()}


def _derived_config(checkpoint: Checkpoint, dialect: str, contents: Contents) -> Mxfp4Config:
    settings: dict[str, Any] = {"activation": contents.activation, "dialect": dialect}
    if contents.profile:
        settings["profile"] = contents.profile
    plain = Mxfp4Config.from_dict(settings)
    resolver = Resolver.for_model(plain, checkpoint.config, fused={}, stored=True)
    others: dict[str, Recipe | Narrow] = {**contents.tensors, **contents.beside}
    ignore = [
        f"={name.removesuffix('.weight')}"
        for name, recipe in others.items()
        if resolver.decide(name, recipe.shape).quantize
    ]
    forced = [
        {"pattern": f"={weight.removesuffix('.weight')}", "keep": False}
        for weight, entry in contents.entries.items()
        if not resolver.decide(weight, entry.shape).quantize
    ]
    return Mxfp4Config.from_dict({**settings, "ignore": ignore, "overrides": forced})


__all__ = ["convert_checkpoint", "settings_of"]
