"""Put quantised weights together as the model holds them: experts stacked, gate above up, fused weights cut.

What the conversions of the model do to tensors in high precision is done to recipes here: whole rows move, and no byte
of a block changes. A conversion that would do more cannot be applied to codes and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightTransform,
)

from mxfp4_core.dialects import Entry, Recipe, concat, stack
from mxfp4_core.errors import LoadError
from mxfp4_transformers.converters import Group, groups

Parts = Mapping[str, Recipe]


@dataclass(frozen=True)
class Composed:
    """One weight of the model, from the quantised weights of a checkpoint.

    Attributes:
        parts: the recipe of each part of the format, as the model's module holds it.
        entries: what it is made of.
    """

    parts: Parts
    entries: tuple[Entry, ...]

    @property
    def first(self) -> Entry:
        """One of them; what they have in common is checked."""
        return self.entries[0]


def compose(
    entries: Mapping[str, Entry], conversions: Sequence[WeightTransform], model: Any
) -> dict[str, Composed]:
    """Return what the weights of the model are made of, by their names in the model.

    Args:
        entries: the quantised weights of the checkpoint, by canonical name.
        conversions: how transformers turns a checkpoint of this model into its parameters.
        model: the model on the meta device.

    Raises:
        LoadError: a conversion cannot be applied to quantised weights, or experts are missing.
    """
    found: dict[str, Composed] = {}
    for group in groups(entries, conversions, model):
        mine = tuple(entries[name] for name in group.names)
        for target, parts in zip(group.targets, _converted(group, entries), strict=True):
            if target in found:
                raise _misfit(
                    group, f"{target} would be loaded twice", "each weight of the model comes from one place"
                )
            found[target] = Composed(parts, mine)
    return found


def _converted(group: Group, entries: Mapping[str, Entry]) -> list[Parts]:
    columns = [[entries[name].parts for name in names] for names in group.columns.values()]
    alike = {
        (entry.format, entry.profile, entry.activation) for entry in (entries[name] for name in group.names)
    }
    if len(alike) > 1:
        raise _misfit(
            group, f"{len(alike)} kinds of weights", "what becomes one weight has one format and profile"
        )
    if group.converter is None or _is_whole(group):
        if len(group.names) != 1:
            raise _misfit(
                group, f"{len(group.names)} weights", "each weight of the model comes from one place"
            )
        return [columns[0][0]]
    for operation in group.converter.operations:
        columns = _applied(operation, columns, group)
    return [column[0] for column in columns]


def _is_whole(group: Group) -> bool:
    """Say whether a dialect holds the weight as the module here does, so that the conversion has nothing to do."""
    converter: WeightConverter | None = group.converter
    kinds = {type(op) for op in converter.operations} if converter else set()
    known = kinds <= {MergeModulelist, Concatenate, Chunk}
    return not known and len(group.names) == len(group.targets) == 1


def _applied(operation: Any, columns: list[list[Parts]], group: Group) -> list[list[Parts]]:
    dim = getattr(operation, "dim", None)
    # All parts of the weight have its rows; a part of the input has none.
    rows = max((part.shape[:-1] for part in columns[0][0].values()), key=len)
    if isinstance(operation, MergeModulelist) and dim == 0:
        sizes = {len(column) for column in columns}
        if len(sizes) > 1:
            raise _misfit(
                group,
                f"{sorted(sizes)} experts for its parts",
                "the checkpoint has each part of every expert once",
            )
        return [[_each(column, stack)] for column in columns]
    if type(operation) is Concatenate and type(dim) is int and 0 <= dim < len(rows):
        every = [parts for column in columns for parts in column]
        return [[_each(every, lambda recipes: concat(recipes, dim))]]
    if (
        type(operation) is Chunk
        and type(dim) is int
        and 0 <= dim < len(rows)
        and len(columns) == len(columns[0]) == 1
    ):
        (parts,), count = columns[0], len(group.targets)
        if rows[dim] % count:
            raise _misfit(
                group, f"{rows[dim]} rows in {count} parts", "a fused weight is cut into equal parts"
            )
        step = rows[dim] // count
        return [
            [{name: part.take(i * step, (i + 1) * step, axis=dim) for name, part in parts.items()}]
            for i in range(count)
        ]
    raise _misfit(
        group, type(operation).__name__, "codes and scales can be stacked, joined and cut along their rows"
    )


def _each(parts: Sequence[Parts], join: Callable[[Sequence[Recipe]], Recipe]) -> Parts:
    return {name: join([each[name] for each in parts]) for name in parts[0]}


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
