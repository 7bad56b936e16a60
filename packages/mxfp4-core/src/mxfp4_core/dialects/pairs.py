"""Match the parts of weights by name and find what contradicts a description; shared by the dialects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.arithmetic.formats.base import Format, Part
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.checkpoint.reader import TORCH_DTYPES
from mxfp4_core.dialects.base import Entry
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.dialects.unread import named_like
from mxfp4_core.errors import DialectError

DTYPES = {name: word for word, name in TORCH_DTYPES.items()}
"""Words of safetensors for the dtypes of parts."""

_FLOATS = ("BF16", "F16", "F32", "F64")

# What else a file may call the same bytes: torch has dtypes of its own for both.
_ALIASES = {"codes": ("I8", "F4"), "scales": ("F8_E8M0",)}


def find_entries(
    dialect: str,
    source: Source,
    linear: Mapping[str, str],
    *,
    stacked: Mapping[str, str] | None = None,
    form: Format = MXFP4,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    transposed: frozenset[str] = frozenset(),
) -> dict[str, Entry]:
    """Return the entries of a dialect that stores parts side by side, by canonical weight name.

    Args:
        dialect: name for messages.
        source: the checkpoint.
        linear: for each part how its name ends, behind the name of the module, for example
            ``{"codes": ".weight_packed", "scales": ".weight_scale"}``.
        stacked: the same for stacked experts, behind the name of the weight; None if the dialect has none.
        form: the format.
        shapes: logical shapes of weights that were padded.
        transposed: weights that the model holds as ``[..., K, N]``.

    Raises:
        DialectError: codes without scales, scales without codes, wrong dtypes or shapes, nothing quantised at
            all.
    """
    first, *others = form.parts
    key = linear[first.name]
    entries: dict[str, Entry] = {}
    used: set[str] = set()
    for name, (dtype, _) in source.tensors.items():
        if name.endswith(key):
            base = name.removesuffix(key)
            weight, names = f"{base}.weight", {part: f"{base}{end}" for part, end in linear.items()}
        elif stacked and all(f"{name}{stacked[part.name]}" in source.tensors for part in others):
            weight, names = name, {part: f"{name}{end}" for part, end in stacked.items()}
        else:
            continue
        # A kept weight may have the name that codes have; the other parts tell them apart. Where a suffix makes the
        # names of parts, tensors of the model may have them, too; then all are floats.
        beside = [
            source.tensors[names[part.name]][0] for part in others if names[part.name] in source.tensors
        ]
        if stacked and dtype in _FLOATS and all(word in _FLOATS for word in beside):
            continue
        if not beside and key == ".weight" and dtype not in accepted(first):
            continue
        shape, parts = match_parts(dialect, source, form, names, (shapes or {}).get(weight))
        entries[weight] = Entry(weight, shape, parts, form.name, weight in transposed)
        used.update(names.values())
    for part in others:
        end, words = linear[part.name], accepted(part)
        if stacked and words[0] not in _FLOATS:
            end = stacked[part.name]
        for name, (dtype, _) in source.tensors.items():
            # Where a suffix makes the name of a part, tensors of the model end in it, too: hc_head.hc_scale.
            if name.endswith(end) and name not in used and not (stacked and dtype not in words):
                rule = f"each tensor of {part.name} belongs to one of {first.name}"
                contradiction(dialect, f"{part.name} {name!r} without {first.name}", rule)
    if not entries:
        nothing(dialect, source, "no pair of codes and scales")
    return entries


def in_order(entries: Mapping[str, Entry], source: Source) -> dict[str, Entry]:
    """Return entries in the order in which the files hold their first tensors."""
    place = {name: number for number, name in enumerate(source.tensors)}
    ordered = sorted(entries.values(), key=lambda entry: place[entry.names[0]])
    return {entry.weight: entry for entry in ordered}


def match_parts(
    dialect: str, source: Source, form: Format, names: Mapping[str, str], logical: tuple[int, ...] | None
) -> tuple[tuple[int, ...], dict[str, Recipe]]:
    """Return the logical shape of a weight and the recipes of its parts, checked against the format.

    Raises:
        DialectError: a part is missing, or has a dtype or shape that the format does not give it.
    """
    first = form.parts[0]
    for part in form.parts:
        if names[part.name] not in source.tensors:
            seen = f"{first.name} {names[first.name]!r} without {names[part.name]!r}"
            contradiction(dialect, seen, f"each tensor of {first.name} has its {part.name}")
    if any(source.tensors[names[part.name]][0] not in accepted(part) for part in form.parts):
        seen = ", ".join(f"{name!r} is {source.tensors[name][0]}" for name in names.values())
        wanted = ", ".join(f"{part.name} {' or '.join(accepted(part))}" for part in form.parts)
        contradiction(dialect, seen, f"format {form.name} is {wanted}")
    parts = {
        part.name: source.tensor(names[part.name]).reinterpret(DTYPES[part.dtype]) for part in form.parts
    }
    lead = parts[first.name].shape
    physical = (*lead[:-1], lead[-1] * first.values) if lead else ()
    fits = len(physical) > 1 and physical[-1] % form.block == 0
    if not fits or any(parts[part.name].shape != part.shape(physical, physical[-1]) for part in form.parts):
        seen = " with ".join(f"{name!r} {list(source.tensors[name][1])}" for name in names.values())
        wanted = " and ".join(
            f"{part.name} [{'' if part.operand == 'input' else '..., N, '}K/{part.values}]"
            for part in form.parts
        )
        contradiction(dialect, seen, f"format {form.name} has {wanted}")
    if logical is None:
        return physical, parts
    if logical[:-1] != physical[:-1] or form.physical_k(logical[-1]) != physical[-1]:
        seen = f"{names[first.name]!r} holds {list(physical)}, the description says {list(logical)}"
        contradiction(dialect, seen, f"only K is padded, and to the next multiple of {form.block}")
    return logical, parts


def check_parts(dialect: str, entry: Entry) -> None:
    """Check that the parts of an entry are those of its format, in dtype and shape.

    Args:
        dialect: name for messages.
        entry: what a dialect has read.

    Raises:
        DialectError: they are not.
        FormatError: no such format is installed.
    """
    form = formats.get(entry.format)
    sizes = form.shapes(entry.shape)
    want = {part.name: (DTYPES[part.dtype], sizes[part.name]) for part in form.parts}
    have = {key: (recipe.dtype, recipe.shape) for key, recipe in entry.parts.items()}
    if have != want:
        seen = f"{entry.weight!r} {list(entry.shape)} with {_told(have)}"
        contradiction(dialect, seen, f"format {form.name} has {_told(want)}")


def _told(parts: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in parts.items())


def accepted(part: Part) -> tuple[str, ...]:
    """Return the dtypes under which a file may hold a part, the usual one first."""
    return (DTYPES[part.dtype], *(_ALIASES.get(part.name, ()) if part.dtype == "uint8" else ()))


def nothing(dialect: str, source: Source, seen: str) -> NoReturn:
    """Raise the error for a description without a quantised weight, and say what the names look like instead."""
    kinds = sorted({dtype for dtype, _ in source.tensors.values()})
    seen = f"{seen}; the tensors are {' '.join(kinds)}"
    if other := named_like(source.tensors):
        seen += f"; {other}"
    contradiction(dialect, seen, "config.json says that weights are quantised in this way, so some are")


def name_list(dialect: str, described: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a list of names from a description, empty where it is missing or null.

    Raises:
        DialectError: anything but a list of strings.
    """
    value = described.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        contradiction(dialect, f"{key} = {str(value)[:80]}", f"{key} is a list of names")
    return tuple(value)


def shape_table(dialect: str, described: Mapping[str, Any], key: str) -> dict[str, tuple[int, ...]]:
    """Return a table of shapes from a description, empty where it is missing or null.

    Raises:
        DialectError: anything but a mapping to lists of at least two positive integers.
    """
    value = described.get(key)
    if value is None:
        return {}
    for row in value.values() if isinstance(value, dict) else [None]:
        if (
            not isinstance(row, list)
            or len(row) < 2
            or not all(type(size) is int and size > 0 for size in row)
        ):
            contradiction(dialect, f"{key} = {str(value)[:80]}", f"{key} maps names to shapes")
    return {str(name): tuple(row) for name, row in value.items()}


def contradiction(dialect: str, seen: str, rule: str) -> NoReturn:
    """Raise the error for a description and tensors that do not fit each other."""
    raise DialectError(
        f"this is not a valid {dialect} checkpoint",
        seen=seen,
        rule=rule,
        fix="write the checkpoint again, or correct quantization_config in config.json",
    )


__all__ = [
    "DTYPES", "accepted", "check_parts", "contradiction", "find_entries", "in_order", "match_parts", "name_list",
    "nothing", "shape_table",
]  # fmt: skip
