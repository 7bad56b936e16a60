"""Measure what quantising does to a checkpoint, tensor by tensor, with one piece of one tensor in memory.

`measure` compares a quantised checkpoint with its source. `compare` quantises the source with several
profiles and keeps nothing but the figures.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from mxfp4_core import dialects
from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.arithmetic.profiles import resolve
from mxfp4_core.arithmetic.scales import RULES
from mxfp4_core.checkpoint.reader import Checkpoint, TensorInfo, open_checkpoint
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Entry
from mxfp4_core.dialects.recipes import Read, Recipe
from mxfp4_core.errors import ConfigError, PatternError
from mxfp4_core.jobs.described import describe_checkpoint
from mxfp4_core.jobs.measured import Progress, compared_error, kept_error, measured_error
from mxfp4_core.jobs.metrics import Metrics, merge
from mxfp4_core.jobs.pieces import logical_shape
from mxfp4_core.jobs.planned import decided
from mxfp4_core.jobs.settled import settings_of
from mxfp4_core.naming.orientation import k_first
from mxfp4_core.naming.resolver import Resolver
from mxfp4_core.report.environment import environment
from mxfp4_core.report.lines import ByExpert, Lines
from mxfp4_core.report.model import Report

Path = str | os.PathLike[str]


def measure(
    source: Path | Checkpoint,
    quantised: Path | Checkpoint,
    *,
    models: str = "auto",
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> Report:
    """Compare a quantised checkpoint with the high-precision checkpoint that it was made from.

    Every tensor of the source is read: quantised ones give their error, kept ones are compared value by
    value.

    Args:
        source: checkpoint in BF16, FP16 or FP32.
        quantised: checkpoint in any dialect that `mxfp4_core.dialects` reads.
        models: who says what the weights are: ``auto``, ``none`` or the name of a model provider.
        progress: called after each piece.
        command: the command line, for the record.

    Raises:
        CheckpointError: a damaged checkpoint.
        ConfigError: the source is quantised, or the other one is not.
        DialectError: a dialect that is not read.
        ShapeError: a tensor with another shape than in the source.
    """
    source, quantised = _open(source), _open(quantised)
    _refuse_quantised(source)
    found = dialects.read(quantised)
    if found is None:
        raise ConfigError(
            f"{quantised.path} is not quantised",
            seen="no MXFP4 tensors and no quantization_config",
            rule="a report measures a quantised checkpoint against its source",
            fix="name the quantised checkpoint first and the original with --source",
        )
    dialect, contents = found
    config, profile = settings_of(quantised, dialect, contents)
    variant = profile or "as stored"
    view = describe_checkpoint(source, models).view
    resolver = Resolver.for_model(config, source.config, view=view)
    lines, findings = Lines(), list[str]()
    used: set[str] = set()
    for name, info in source.tensors.items():
        entry = contents.entries.get(name)
        if entry is not None:
            used.update(entry.names)
            results = {variant: measured_error(source, info, quantised, entry, progress)}
            findings += _nonfinite(name, results)
            lines.add(
                info, "quantised", f"{_kind(entry)} in the file ({dialect.name})", entry.nbytes, results
            )
        elif (recipe := contents.tensors.get(name) or _stored(quantised, name)) is not None:
            used.update(recipe.names)
            metrics, finding = kept_error(source, info, quantised, recipe, progress)
            findings += [f"{name}: {finding}"] if finding else []
            results = {variant: dict[int | None, Metrics]({None: metrics})} if metrics else {}
            lines.add(info, "kept", _why_kept(resolver, info), recipe.nbytes, results)
        else:
            findings.append(f"{name}: in the source, missing from the quantised checkpoint")
    # What belongs to a quantised module, such as the scale of its input, has no counterpart in the source.
    modules = {_module(entry.weight) for entry in contents.entries.values()}
    extra = [name for name in quantised.tensors if name not in used and _module(name) not in modules]
    findings += [f"{name}: in the quantised checkpoint, not in the source" for name in extra]
    paths = str(source.path), str(quantised.path)
    return Report("measured", *paths, (variant,), lines.layers(), tuple(findings), environment(command))


def compare(
    source: Path | Checkpoint,
    profiles: Sequence[str],
    *,
    config: Mxfp4Config | None = None,
    models: str = "auto",
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> Report:
    """Say what each of several profiles would make of a checkpoint; nothing is written.

    Args:
        source: checkpoint in BF16, FP16 or FP32.
        profiles: names of profiles or ``rule/ties`` pairs; a bare rule such as ``floor`` means
            ``floor/even``.
        config: which tensors to quantise; by default what `mxfp4 quantize` does without a config. Its own
            rule is not used.
        models: who says what the weights are: ``auto``, ``none`` or the name of a model provider.
        progress: called after each piece.
        command: the command line, for the record.

    Raises:
        CheckpointError: a damaged checkpoint.
        ConfigError: an unknown or repeated profile, or a source that is quantised already.
        PatternError: a pattern of the config that matches nothing.
    """
    variants = _variants(profiles)
    source = _open(source)
    _refuse_quantised(source)
    view = describe_checkpoint(source, models).view
    resolver = Resolver.for_model(config or Mxfp4Config(), source.config, view=view)
    decisions = decided(resolver, list(source.tensors.values()))
    lines, findings = Lines(), list[str]()
    for (name, info), decision in zip(source.tensors.items(), decisions, strict=True):
        if decision.quantize:
            first = k_first(name, info.shape, source.config, view)
            results = compared_error(source, info, variants, progress, transposed=first)
            findings += _nonfinite(name, results)
            after = _mxfp4_bytes(logical_shape(info.shape, transposed=first))
            lines.add(info, "quantised", decision.reason, after, results)
        else:
            lines.add(info, "kept", decision.reason, info.nbytes, {})
            if progress:
                progress(name, info.nbytes)
    return Report(
        "compared", str(source.path), None, variants, lines.layers(), tuple(findings), environment(command)
    )


def _stored(checkpoint: Checkpoint, name: str) -> Recipe | None:
    """Return what reads a tensor that no dialect has a name of its own for, such as the values of a weight in FP8."""
    info = checkpoint.tensors.get(name)
    return None if info is None else Read(info.dtype, info.shape, name)


def _kind(entry: Entry) -> str:
    return "MXFP4" if entry.format == "mxfp4" else entry.format


def _open(checkpoint: Path | Checkpoint) -> Checkpoint:
    return checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)


def _refuse_quantised(source: Checkpoint) -> None:
    if (found := dialects.identify(source)) is not None:
        raise ConfigError(
            f"{source.path} cannot be the source of a report",
            seen=f"it is quantised already: {found[0]} ({found[1]})",
            rule="the error is measured against high-precision weights",
            fix="give the original checkpoint as the source: mxfp4 report QUANTISED --source ORIGINAL",
        )


def _variants(profiles: Sequence[str]) -> tuple[str, ...]:
    names = tuple((resolve(rule=name) if _is_rule(name) else resolve(name)).name for name in profiles)
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            "the profiles to compare are not usable",
            seen=" ".join(names) or "none",
            rule="at least one profile or rule, each once",
            fix="for example --rule floor --rule even",
        )
    return names


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _why_kept(resolver: Resolver, info: TensorInfo) -> str:
    try:
        decision = resolver.decide(info.name, info.shape)
    except PatternError:  # the reason is for people; the file has decided, whatever its patterns say
        decision = None
    return decision.reason if decision and not decision.quantize else "high precision in the file"


def _is_rule(name: str) -> bool:
    return name in RULES or (name.startswith("ceil_d(") and "/" not in name)


def _mxfp4_bytes(shape: tuple[int, ...]) -> int:
    blocks = math.prod(shape[:-1]) * -(-shape[-1] // BLOCK)
    return blocks * (BLOCK // 2 + 1)


def _nonfinite(name: str, results: Mapping[str, ByExpert]) -> list[str]:
    counts = {variant: merge(parts.values()).nonfinite for variant, parts in results.items()}
    worst = max(counts.values(), default=0)
    return [f"{name}: {worst} values are NaN or infinite in the source or in MXFP4"] if worst else []


__all__ = ["Progress", "compare", "measure"]
