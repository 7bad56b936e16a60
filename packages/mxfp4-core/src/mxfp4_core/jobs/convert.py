"""Convert an MXFP4 checkpoint to another dialect: names and description change, codes and scales do not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mxfp4_core import dialects
from mxfp4_core.checkpoint.assemble import DEFAULT_SHARD_BYTES, Unit
from mxfp4_core.checkpoint.manifest import Manifest, read_manifest, source_fingerprint
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.checkpoint.tasks import Executor
from mxfp4_core.config.messages import unknown_name
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Contents, Description, Dialect, Entry
from mxfp4_core.dialects.default import AUTO, default_for
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs.opened import open_quantized
from mxfp4_core.jobs.output import (
    Report,
    Result,
    check_apart,
    content_of,
    linear_modules,
    loading_class,
    write_result,
)
from mxfp4_core.jobs.planned import check_expressible
from mxfp4_core.jobs.units import CopyUnit, PartsUnit
from mxfp4_core.naming.resolver import Resolver

BESIDE = ("keep", "widen")
"""What can become of weights in FP8 that stand beside the MXFP4 ones."""


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    beside: str = "keep",
    activation: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    force: bool = False,
    dry_run: bool = False,
    progress: Report | None = None,
    executor: Executor | None = None,
) -> Result:
    """Write an MXFP4 checkpoint in another dialect.

    Args:
        source: folder with a checkpoint in a dialect that is read.
        destination: folder for the result.
        to: dialect to write; ``auto`` for compressed-tensors where it can say everything, else our own.
        beside: what becomes of weights in FP8 that stand beside the MXFP4 ones: ``keep`` them as they are, where the
            other dialect has a word for them, or ``widen`` them to BF16, which is exact.
        activation: how the result says that activations are quantised; as the source does if None.
        max_shard_bytes: most bytes of data in one file; a single weight may exceed it.
        force: replace a checkpoint in the destination, and discard what another run left there.
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
    named, folder = None if to == AUTO else dialects.get(to), Path(destination)
    check_apart(Path(source), folder)
    checkpoint, origin, contents = open_quantized(source, "convert")
    _refuse_static_scales(checkpoint, origin, contents)
    config, profile = settings_of(checkpoint, origin, contents)
    if activation is not None:
        config = Mxfp4Config.from_dict({**config.to_dict(), "activation": activation})
    entries = [_with(entry, activation) for entry in contents.entries.values()]
    kept = {name: recipe.shape for name, recipe in contents.tensors.items()}
    kept |= {name: each.values.shape for name, each in contents.beside.items()}
    others = tuple(kept)
    left = () if beside == "widen" else tuple(contents.beside.values())
    model = checkpoint.config if contents.model is None else contents.model
    described = Description(model, config, entries, linear_modules(kept, entries), profile, left, others)
    dialect, why = (named, "") if named is not None else default_for(described)
    config = config.model_copy(update={"dialect": dialect.name})
    silent = not dialect.can_say(profile)
    described = replace(described, config=config, profile="" if silent else profile)
    units = _units(checkpoint, contents, config, dialect, beside, model)
    manifest = Manifest(
        dialect.name, config.to_dict(), config.fingerprint(), profile, source_fingerprint(checkpoint)
    )
    documents, metadata = dialect.documents(described), dialect.metadata(described)
    content = content_of(checkpoint, units, documents, manifest, metadata)
    result = write_result(
        folder,
        content,
        dialect,
        len(entries),
        model=loading_class(model),
        max_shard_bytes=max_shard_bytes,
        force=force,
        dry_run=dry_run,
        progress=progress,
        executor=executor,
    )
    notes = (f"{dialect.name} has no word for the profile {profile}: the manifest alone names it",)
    result = replace(result, notes=notes if silent else ())
    return replace(result, why=why, format=", ".join(sorted({entry.format for entry in entries})))


def settings_of(checkpoint: Checkpoint, dialect: Dialect, contents: Contents) -> tuple[Mxfp4Config, str]:
    """Return the config that describes a quantised checkpoint, and the profile of its codes ("" if unknown).

    The manifest says both, if it belongs to these files. Otherwise a dialect that stores the whole config says it; for
    others the config is made so that it decides about every name as the file does.

    Raises:
        ConfigError: settings in the file that are not valid.
    """
    manifest = read_manifest(checkpoint.path) if os.path.isdir(checkpoint.path) else None
    if manifest is not None and manifest.dialect == dialect.name and _describes(manifest, checkpoint):
        return Mxfp4Config.from_dict(manifest.config), manifest.profile
    settings = dialect.settings(checkpoint.config.get("quantization_config") or {})
    if settings is not None:
        return Mxfp4Config.from_dict(settings), contents.profile
    return _derived_config(checkpoint, dialect, contents), contents.profile


def _units(
    checkpoint: Checkpoint,
    contents: Contents,
    config: Mxfp4Config,
    dialect: Dialect,
    beside: str,
    model: Mapping[str, Any],
) -> list[Unit]:
    """Return one unit for each tensor or weight, in the order in which the source stores them."""
    place = {name: number for number, name in enumerate(checkpoint.tensors)}
    padding = config.model_copy(update={"tail": "pad"})
    units: list[tuple[int, Unit]] = []

    def add(kind: type[PartsUnit], stored: Mapping[str, Recipe]) -> None:
        names = list(dict.fromkeys(name for recipe in stored.values() for name in recipe.names))
        units.append((place[names[0]], kind(checkpoint, tuple(stored.items()))))

    for entry in contents.entries.values():
        # Who quantised it knew that it is multiplied with.
        check_expressible(replace(entry, known=True), padding, dialect)
        add(PartsUnit, dialect.write(entry))
    for name, recipe in dialect.write_others(contents.tensors, model).items():
        add(CopyUnit, {name: recipe})
    for each in contents.beside.values():
        add(CopyUnit, {each.weight: each.widened} if beside == "widen" else dialect.write_beside(each))
    units.sort(key=lambda pair: pair[0])
    return [unit for _, unit in units]


def _with(entry: Entry, activation: str | None) -> Entry:
    return entry if activation is None else replace(entry, activation="")


def _refuse_static_scales(checkpoint: Checkpoint, origin: Dialect, contents: Contents) -> None:
    if static := list(contents.static):
        raise DialectError(
            f"cannot convert {checkpoint.path}",
            seen=f"activation {contents.activation} with static scales, for example {static[0]!r}",
            rule=f"only the dialect {origin.name} says what these scales mean",
            fix="use the checkpoint as it is, or quantise the original with activation none or mxfp4",
        )


def _describes(manifest: Manifest, checkpoint: Checkpoint) -> bool:
    def facts(row: Mapping[str, Any]) -> tuple[object, ...]:
        return row.get("file"), row.get("dtype"), tuple(row.get("shape") or ())

    wanted = {name: facts(row) for name, row in manifest.tensors.items()}
    return wanted == {n: (info.file.name, info.dtype, info.shape) for n, info in checkpoint.tensors.items()}


def _derived_config(checkpoint: Checkpoint, dialect: Dialect, contents: Contents) -> Mxfp4Config:
    settings: dict[str, Any] = {"activation": contents.activation, "dialect": dialect.name}
    if contents.profile:
        settings["profile"] = contents.profile
    plain = Mxfp4Config.from_dict(settings)
    resolver = Resolver.for_model(plain, checkpoint.config, fused={})
    others = {**contents.tensors, **{name: each.values for name, each in contents.beside.items()}}
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
