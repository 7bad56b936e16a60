"""Put quantised weights together as the model holds them: experts stacked, gate above up, fused weights cut.

What the conversions of the model do to tensors in high precision is done to recipes here: whole rows move, and no byte
of a block changes. A conversion that would do more cannot be applied to codes and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    Transpose,
)

from mxfp4_core.dialects import Entry, Recipe, concat, stack
from mxfp4_core.errors import LoadError
from mxfp4_core.modules import Mxfp4Module
from mxfp4_transformers.converters import Group, Split
from mxfp4_transformers.rows import KNOWN, gathered, moved

Parts = Mapping[str, Recipe]
_ROWS = "codes and scales can be stacked, joined and cut along their rows"


@dataclass(frozen=True)
class Composed:
    """One weight of the model, from the quantised weights of a checkpoint.

    Attributes:
        parts: the recipe of each part of the format, as the model's module holds it.
        entries: what it is made of.
        group: it and the other weights that are made of the same, in the order of the conversion.
    """

    parts: Parts
    entries: tuple[Entry, ...]
    group: tuple[str, ...]

    @property
    def first(self) -> Entry:
        """One of them; what they have in common is checked."""
        return self.entries[0]


def compose(entries: Mapping[str, Entry], groups: Iterable[Group], model: Any) -> dict[str, Composed]:
    """Return what the weights of the model are made of, by their names in the model.

    Args:
        entries: the quantised weights of the checkpoint, by canonical name.
        groups: what becomes of them, and of whatever else the checkpoint has.
        model: the model, which may be on the meta device.

    Raises:
        LoadError: a conversion cannot be applied to quantised weights, or experts are missing.
    """
    found: dict[str, Composed] = {}
    for group in groups:
        held = [name for name in group.names if name in entries]
        if not held:
            continue
        if len(held) < len(group.names):
            seen = f"{len(held)} of {len(group.names)} are quantised"
            raise _misfit(group, seen, "what becomes one weight is quantised as a whole")
        mine = tuple(entries[name] for name in group.names)
        for target, parts in zip(group.targets, _converted(group, entries, model), strict=True):
            if target in found:
                raise _misfit(
                    group, f"{target} would be loaded twice", "each weight of the model comes from one place"
                )
            found[target] = Composed(parts, mine, group.targets)
    return found


def _converted(group: Group, entries: Mapping[str, Entry], model: Any) -> list[Parts]:
    columns = [[entries[name].parts for name in names] for names in group.columns.values()]
    alike = {
        (entry.format, entry.profile, entry.activation) for entry in (entries[name] for name in group.names)
    }
    if len(alike) > 1:
        raise _misfit(
            group, f"{len(alike)} kinds of weights", "what becomes one weight has one format and profile"
        )
    if group.converter is None:
        if len(group.names) != 1:
            raise _misfit(
                group, f"{len(group.names)} weights", "each weight of the model comes from one place"
            )
        return [columns[0][0]]
    kinds = {type(operation) for operation in group.converter.operations}
    if kinds <= KNOWN:
        for operation in group.converter.operations:
            columns = _applied(operation, columns, group, model)
        return [column[0] for column in columns]
    every = [parts for column in columns for parts in column]
    rows = {name: _rows(entries[name].parts) for name in group.names}
    index = moved(group, rows, model)
    if index is None or any(target not in index for target in group.targets):
        if kinds == {Transpose} and len(every) == len(group.targets) == 1:
            return every  # a dialect holds the weight as the module here does
        raise _misfit(group, ", ".join(sorted(kind.__name__ for kind in kinds)), _ROWS)
    return [
        _joined(every, partial(gathered, index=index[target]), _inputs(every[0]), group)
        for target in group.targets
    ]


def _rows(parts: Parts) -> tuple[int, ...]:
    """Return the rows of a weight, which all of its parts have but those of the input."""
    return max((part.shape[:-1] for part in parts.values()), key=len)


def _inputs(parts: Parts) -> set[str]:
    """Return the parts of the input: they have no rows, and are the same for all rows of a weight."""
    return {name for name, part in parts.items() if len(part.shape) <= len(_rows(parts))}


def _applied(operation: Any, columns: list[list[Parts]], group: Group, model: Any) -> list[list[Parts]]:
    dim, first = getattr(operation, "dim", None), columns[0][0]
    rows, inputs = _rows(first), _inputs(first)
    if isinstance(operation, MergeModulelist) and dim == 0:
        sizes = {len(column) for column in columns}
        if len(sizes) > 1:
            raise _misfit(
                group,
                f"{sorted(sizes)} experts for its parts",
                "the checkpoint has each part of every expert once",
            )
        return [[_joined(column, stack, inputs, group)] for column in columns]
    if type(dim) is not int or not 0 <= dim < len(rows):
        raise _misfit(group, type(operation).__name__, _ROWS)
    if type(operation) is Concatenate:
        every = [parts for column in columns for parts in column]
        return [[_joined(every, lambda recipes: concat(recipes, dim), inputs, group)]]
    if type(operation) in (Chunk, Split) and len(columns) == len(columns[0]) == 1:
        steps = [rows[dim] // len(group.targets)] * len(group.targets)
        if type(operation) is Split:  # as its targets are
            steps = [_shape(model, target)[dim] for target in group.targets]
        if sum(steps) != rows[dim]:
            raise _misfit(
                group, f"{rows[dim]} rows in parts of {steps}", "a fused weight is cut as the model needs it"
            )
        ends = list(accumulate(steps, initial=0))
        return [
            [
                {
                    name: part if name in inputs else part.take(start, stop, axis=dim)
                    for name, part in first.items()
                }
            ]
            for start, stop in pairwise(ends)
        ]
    raise _misfit(group, type(operation).__name__, _ROWS)


def _shape(model: Any, name: str) -> tuple[int, ...]:
    """Return the shape of a weight, in high precision or not."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, Mxfp4Module):
        return next(module.shapes[matrix] for matrix, each in module.matrices.items() if each == own)
    return tuple(getattr(module, own).shape)


def _joined(
    every: Sequence[Parts], join: Callable[[list[Recipe]], Recipe], inputs: Collection[str], group: Group
) -> Parts:
    if inputs and len(every) > 1:
        raise LoadError(
            f"{', '.join(group.targets)} cannot be filled",
            seen=f"{len(every)} weights that each have {', '.join(sorted(inputs))}",
            rule="a part of the input belongs to one weight of the model",
            fix="load the high-precision checkpoint from which it was made",
        )
    return {
        name: one if name in inputs else join([each[name] for each in every])
        for name, one in every[0].items()
    }


def _misfit(group: Group, seen: str, rule: str) -> LoadError:
    return LoadError(
        f"{', '.join(_few(group.targets))} cannot be made from {', '.join(_few(group.names))}",
        seen=seen,
        rule=rule,
        fix="complete the checkpoint, or load the high-precision checkpoint from which it was made",
    )


def _few(names: Iterable[str]) -> list[str]:
    names = list(names)
    return [*names[:3], "…"] if len(names) > 3 else names


__all__ = ["Composed", "compose"]
