"""Weights that are yet to be quantised: their entries, which dialect takes them, and how it stores what is made."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mxfp4_core import dialects
from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.checkpoint.reader import Checkpoint, TensorInfo
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Description, Dialect, Entry, alternates
from mxfp4_core.dialects.default import AUTO, default_for, named_for
from mxfp4_core.dialects.pairs import DTYPES
from mxfp4_core.dialects.recipes import Read
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError, ShapeError
from mxfp4_core.jobs.output import linear_modules
from mxfp4_core.naming.decision import Decision
from mxfp4_core.naming.resolver import Resolver
from mxfp4_core.naming.view import ModelView

_INTEGERS = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})

Layouts = tuple[tuple[str, tuple[int, ...]], ...]
"""Dtype and shape of each stored part."""


def planned(
    weight: str,
    shape: Sequence[int],
    transposed: bool,
    model_type: str,
    format: str = "mxfp4",
    *,
    profile: str = "",
    activation: str = "",
    view: ModelView | None = None,
) -> Entry:
    """Return the entry for a weight that is yet to be quantised; its recipes read the parts by their own names.

    Args:
        weight: canonical name.
        shape: shape in the source.
        transposed: whether the source has K before N.
        model_type: as in config.json.
        format: what the weight becomes.
        profile: the profile of the weight, where it is not that of the config; so is the next one.
        activation: how its input is to be quantised.
        view: what a model provider says, if one does.
    """
    found = view.find(weight) if view is not None else ()
    known = view is not None and view.names(weight) and not any(each.refusal for each in found)
    reader = next((each.reader for each in found if each.reader), "")
    logical = (*shape[:-2], shape[-1], shape[-2]) if transposed else tuple(shape)
    parts = _parts(logical, format)
    turn = alternates(weight, model_type)
    return Entry(weight, logical, parts, format, transposed, turn, profile, activation, known, reader)


def planned_as(
    info: TensorInfo,
    decision: Decision,
    transposed: bool,
    model_type: str,
    config: Mxfp4Config,
    view: ModelView | None = None,
) -> Entry:
    """Return the entry for a tensor as it was decided about; see `planned`.

    Args:
        info: the tensor.
        decision: what it becomes.
        transposed: whether the source has K before N.
        model_type: as in config.json.
        config: what the decision follows from.
        view: what a model provider says, if one does.
    """
    own = decision.format != config.format
    return planned(
        info.name,
        info.shape,
        transposed,
        model_type,
        decision.format,
        profile=decision.profile or "" if own else "",
        activation=decision.activation if own else "",
        view=view,
    )


def decided(resolver: Resolver, infos: Sequence[TensorInfo]) -> list[Decision]:
    """Decide about every tensor of a checkpoint: by its name and shape, and by its dtype where that says it all.

    A matrix of integers that is no ``.weight`` is a buffer, such as positions or a mask, and is kept; a pattern that
    names it is an error later on, as is a weight of integers.

    Args:
        resolver: decides about names and shapes.
        infos: all tensors.

    Raises:
        PatternError: as `Resolver.decide_all`.
    """
    found = resolver.decide_all([(info.name, info.shape) for info in infos])
    return [
        Decision(decision.name, False, f"a buffer of {info.dtype}, no weight")
        if decision.quantize
        and decision.pattern is None
        and info.dtype in _INTEGERS
        and not info.name.endswith(".weight")
        else decision
        for info, decision in zip(infos, found, strict=True)
    ]


@functools.lru_cache(maxsize=256)  # the weights of a model have few shapes
def _parts(shape: tuple[int, ...], format: str) -> Mapping[str, Read]:
    form = formats.get(format)
    sizes = form.shapes(shape)
    return MappingProxyType(
        {part.name: Read(DTYPES[part.dtype], sizes[part.name], part.name) for part in form.parts}
    )


def chosen(checkpoint: Checkpoint, config: Mxfp4Config, entries: Sequence[Entry]) -> tuple[Dialect, str]:
    """Return the dialect that the config names, or chooses, and why.

    Args:
        checkpoint: in high precision.
        config: the settings of the run.
        entries: the weights that are to be quantised.

    Raises:
        ConfigError: no such dialect, or its package is broken.
    """
    if config.dialect != AUTO:
        dialect = dialects.get(config.dialect)
        return dialect, named_for(dialect, entries)
    return default_for(description(checkpoint, config, entries))


def description(checkpoint: Checkpoint, config: Mxfp4Config, entries: Sequence[Entry]) -> Description:
    """Return what the documents of the quantised checkpoint are written from."""
    quantized = {entry.weight for entry in entries}
    kept: Mapping[str, tuple[int, ...]] = {
        name: info.shape for name, info in checkpoint.tensors.items() if name not in quantized
    }
    linears = linear_modules(kept, entries)
    profile = config.resolved_profile()
    source = Source.of(checkpoint)
    return Description(
        checkpoint.config, config, entries, linears, profile, others=tuple(kept), source=source
    )


def stored_as(entry: Entry, config: Mxfp4Config, dialect: Dialect) -> tuple[tuple[str, ...], Layouts]:
    """Return how a dialect stores the parts of a planned entry: their names, and their dtypes and shapes.

    Raises:
        ShapeError, DialectError: as `check_expressible`, and where the dialect moves bytes, which is a conversion.
    """
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
    return tuple(name for name, _ in ordered), tuple(layout for _, layout in ordered)


def check_expressible(entry: Entry, config: Mxfp4Config, dialect: Dialect) -> None:
    """Refuse a weight that cannot be cut into blocks, or that the dialect has no way to store.

    Raises:
        ShapeError: K is no multiple of the format's block, and ``tail`` is ``refuse``.
        DialectError: a bare parameter, or something that the dialect has no word for.
    """
    k, block = entry.shape[-1], formats.get(entry.format).block
    if k % block and config.tail == "refuse":
        raise ShapeError(
            f"tensor {entry.weight!r} cannot be quantised",
            seen=f"K = {k} in shape {list(entry.shape)}",
            rule=f"K is a multiple of {block}",
            fix="set tail = 'pad', which is exact, or add the name to ignore",
        )
    if len(entry.shape) == 2 and not (entry.known or entry.weight.endswith(".weight")):
        raise DialectError(
            f"tensor {entry.weight!r} cannot be quantised",
            seen=f"a bare parameter of shape {list(entry.shape)}",
            rule="what is quantised is the .weight of a linear, or a stack of experts",
            fix="add the name to ignore",
        )
    dialect.check(entry)


__all__ = [
    "Layouts", "check_expressible", "chosen", "decided", "description", "planned", "planned_as", "stored_as",
]  # fmt: skip
