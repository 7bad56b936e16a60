"""Quantise a checkpoint file to file: headers, decisions, units. The model is never built.

What can go wrong by names, shapes and dtypes goes wrong before anything is written.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mxfp4_core import dialects
from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.checkpoint.assemble import DEFAULT_SHARD_BYTES, Unit
from mxfp4_core.checkpoint.manifest import Manifest, source_fingerprint
from mxfp4_core.checkpoint.reader import Checkpoint, open_checkpoint
from mxfp4_core.checkpoint.tasks import Executor
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Description, Dialect, Entry, alternates
from mxfp4_core.dialects.pairs import DTYPES
from mxfp4_core.dialects.recipes import Read
from mxfp4_core.errors import ConfigError, DialectError, FormatError, ShapeError
from mxfp4_core.jobs.described import describe_checkpoint, notes_of
from mxfp4_core.jobs.output import Report, Result, check_apart, content_of, linear_modules, write_result
from mxfp4_core.jobs.units import CopyUnit, QuantizeUnit
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.naming.orientation import k_first
from mxfp4_core.naming.resolver import Resolver
from mxfp4_core.naming.view import ModelView

FLOATS = ("BF16", "F16", "F32")
"""Dtypes that are quantised."""


def quantize_checkpoint(
    source: str | Path,
    target: str | Path,
    config: Mxfp4Config | None = None,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    force: bool = False,
    dry_run: bool = False,
    models: str = "auto",
    progress: Report | None = None,
    executor: Executor | None = None,
) -> Result:
    """Quantise the weights of a checkpoint into a new one.

    Memory stays below a few chunks of 32 MiB (for stacked experts with K before N, twice one expert) and the
    scales of one weight, whatever the size of the model; with an executor, in each worker. A run that was
    interrupted is continued by the same call.

    Args:
        source: folder with safetensors files in high precision.
        target: folder for the result; it appears complete or not at all.
        config: what to quantise, how, and in which dialect to write it.
        max_shard_bytes: most bytes of data in one file; a single weight may exceed it.
        force: replace a checkpoint in the target, and discard what another run left there.
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
        OutputError: a target that exists, is full, cannot be written or belongs to another run.
    """
    config, folder = config or Mxfp4Config.from_dict({}), Path(target)
    check_apart(Path(source), folder)
    checkpoint = open_checkpoint(source)
    refuse_quantized(checkpoint)
    dialect = dialects.get(config.dialect)
    known = describe_checkpoint(checkpoint, models)
    units, entries = quantize_units(checkpoint, config, dialect, known.view)
    profile = config.resolved_profile()
    quantized = {entry.weight for entry in entries}
    kept = {name: info.shape for name, info in checkpoint.tensors.items() if name not in quantized}
    described = Description(checkpoint.config, config, entries, linear_modules(kept, entries), profile)
    manifest = Manifest(
        dialect.name, config.to_dict(), config.fingerprint(), profile, source_fingerprint(checkpoint)
    )
    content = content_of(checkpoint, units, dialect.documents(described), manifest)
    result = write_result(
        folder,
        content,
        dialect,
        len(entries),
        max_shard_bytes=max_shard_bytes,
        force=force,
        dry_run=dry_run,
        progress=progress,
        executor=executor,
    )
    notes = notes_of(checkpoint, known.view, (entry.weight for entry in entries))
    return replace(result, kinds=known.source, notes=notes)


def quantize_units(
    checkpoint: Checkpoint, config: Mxfp4Config, dialect: Dialect, view: ModelView | None
) -> tuple[list[Unit], list[Entry]]:
    """Decide about every tensor and return one unit for each, with the entries of those that are quantised.

    Args:
        checkpoint: in high precision.
        config: what to quantise.
        dialect: what the entries are named for.
        view: what a model provider says; None where names decide.

    Raises:
        PatternError, FormatError, ShapeError, DialectError: as `quantize_checkpoint`.
    """
    resolver = Resolver.for_model(config, checkpoint.config, view=view)
    infos = list(checkpoint.tensors.values())
    decisions = resolver.decide_all([(info.name, info.shape) for info in infos])
    model_type = ModelFacts.read(checkpoint.config).model_type
    units: list[Unit] = []
    entries: list[Entry] = []
    for info, decision in zip(infos, decisions, strict=True):
        if not decision.quantize:
            units.append(CopyUnit.of(checkpoint, info.name))
            continue
        if info.dtype not in FLOATS:
            raise FormatError(
                f"tensor {info.name!r} cannot be quantised",
                seen=f"dtype {info.dtype}, shape {list(info.shape)}",
                rule=f"a weight is one of {', '.join(FLOATS)}",
                fix="add its name to ignore, or convert the source",
            )
        first = k_first(info.name, info.shape, checkpoint.config, view)
        entry, names, layouts = planned(info.name, info.shape, first, config, dialect, model_type)
        units.append(
            QuantizeUnit(
                checkpoint,
                info.name,
                names,
                decision.profile or "",
                config.nonfinite,
                first,
                entry.format,
                layouts,
            )
        )
        entries.append(entry)
    if not entries:
        raise ConfigError(
            f"nothing to quantise in {checkpoint.path}",
            seen=f"{len(infos)} tensors, all of them kept",
            rule="at least one weight becomes MXFP4",
            fix="see the reasons with `mxfp4 plan`, and change targets, ignore or overrides",
        )
    return units, entries


def check_expressible(entry: Entry, config: Mxfp4Config, dialect: Dialect) -> None:
    """Refuse a weight that cannot be cut into blocks, or that the dialect has no way to store."""
    k = entry.shape[-1]
    if k % BLOCK and config.tail == "refuse":
        raise ShapeError(
            f"tensor {entry.weight!r} cannot be quantised",
            seen=f"K = {k} in shape {list(entry.shape)}",
            rule=f"K is a multiple of {BLOCK}",
            fix="set tail = 'pad', which is exact, or add the name to ignore",
        )
    if len(entry.shape) == 2 and not entry.weight.endswith(".weight"):
        raise DialectError(
            f"tensor {entry.weight!r} cannot be quantised",
            seen=f"a bare parameter of shape {list(entry.shape)}",
            rule="what is quantised is the .weight of a linear, or a stack of experts",
            fix="add the name to ignore",
        )
    dialect.check(entry)


Layouts = tuple[tuple[str, tuple[int, ...]], ...]
"""Dtype and shape of each stored part."""


def planned(
    weight: str,
    shape: tuple[int, ...],
    transposed: bool,
    config: Mxfp4Config,
    dialect: Dialect,
    model_type: str,
) -> tuple[Entry, tuple[str, ...], Layouts]:
    """Return the entry for a weight that is yet to be quantised, and how the dialect will store its parts.

    Args:
        weight: canonical name.
        shape: shape in the source.
        transposed: whether the source has K before N.
        config: whether K may be padded.
        dialect: dialect to write.
        model_type: as in config.json.

    Returns:
        The entry, whose recipes read the parts by their own names; the name, and dtype and shape, of each stored part.

    Raises:
        ShapeError, DialectError: as `check_expressible`, and where the dialect moves bytes, which is a conversion.
    """
    logical = (*shape[:-2], shape[-1], shape[-2]) if transposed else shape
    form = formats.get("mxfp4")
    sizes = form.shapes(logical)
    parts = {part.name: Read(DTYPES[part.dtype], sizes[part.name], part.name) for part in form.parts}
    entry = Entry(weight, logical, parts, form.name, transposed, alternates(weight, model_type))
    check_expressible(entry, config, dialect)
    found: dict[str, tuple[str, tuple[str, tuple[int, ...]]]] = {}
    for name, recipe in dialect.write(entry).items():
        if isinstance(recipe, Read) and recipe.nbytes == entry.parts[recipe.name].nbytes:
            found[recipe.name] = name, (recipe.dtype, recipe.shape)
    if found.keys() != entry.parts.keys():
        raise DialectError(
            f"tensor {entry.weight!r} cannot be quantised into the dialect {dialect.name}",
            seen="a layout in which its bytes stand in another order",
            rule="quantising writes the parts of a weight as they are made",
            fix=f"quantise into mxfp4-core, then `mxfp4 convert --to {dialect.name}`",
        )
    ordered = [found[part] for part in entry.parts]
    return entry, tuple(name for name, _ in ordered), tuple(layout for _, layout in ordered)


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raise DialectError for a checkpoint that is quantised, by whatever method."""
    if found := dialects.identify(checkpoint):
        name, reason, dialect = found
        raise DialectError(
            f"{checkpoint.path} is quantised already",
            seen=f"format {name} ({reason})",
            rule="weights are quantised once, from high precision",
            fix="`mxfp4 convert` changes its dialect" if dialect else "use the checkpoint it was made from",
        )


__all__ = [
    "FLOATS",
    "check_expressible",
    "planned",
    "quantize_checkpoint",
    "quantize_units",
    "refuse_quantized",
]
