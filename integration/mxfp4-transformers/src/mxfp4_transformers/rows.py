"""What a conversion of transformers does to rows, found out by trying it on row numbers.

Codes and scales can go where whole rows go. Few kinds of conversion are known by their class; any other is applied to
tensors in which each element says which row and which of two columns it is. What comes out says which row is where, or
that more was done than to move rows: an element that was changed is none of those that went in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.core_model_loading import Chunk, Concatenate, MergeModulelist, Transpose, WeightConverter

from mxfp4_core.dialects import Recipe, concat
from mxfp4_transformers import converters
from mxfp4_transformers.converters import Group, Split

KNOWN: frozenset[Any] = frozenset({MergeModulelist, Concatenate, Chunk, Split})
"""Operations that are known to move whole rows and nothing else."""

_STEP, _FIRST = (
    1_000_003,
    12_347,
)  # of the numbers that go in: what arithmetic makes of one is hardly another one


def moved(group: Group, rows: Mapping[str, tuple[int, ...]], model: Any) -> dict[str, torch.Tensor] | None:
    """Return where the rows of each weight come from that a group becomes, or None where it is not rows that move.

    Args:
        group: with a converter.
        rows: the shape of each tensor of the group without its last axis, by name.
        model: the model, which may be on the meta device.

    Returns:
        For each target a tensor of int64 ``[..., n]``: the number of each row, counted through all tensors of the group
        in their order.
    """
    if group.converter is None:
        return None
    converter, at = converters.rebuilt(WeightConverter, group.converter), 0
    for pattern, names in group.columns.items():
        for name in names:
            count = math.prod(rows[name])
            numbers = torch.arange(2 * at, 2 * (at + count), device="cpu").reshape(*rows[name], 2)
            numbers = numbers * _STEP + _FIRST
            converter.add_tensor(group.targets[0], name, pattern, numbers)
            at += count
    try:
        made = converter.convert(group.targets[0], model=model, config=getattr(model, "config", None))
    except Exception:  # an operation may want anything of its tensors, and raise anything
        return None
    result = {name: each[0] if isinstance(each, list) else each for name, each in made.items()}
    found = {name: _rows_of(each, at) for name, each in result.items()}
    return (
        {name: each for name, each in found.items() if each is not None}
        if None not in found.values()
        else None
    )


def _rows_of(made: Any, count: int) -> torch.Tensor | None:
    """Return the numbers of rows in what came out, or None where it is no rows that went in, whole."""
    if not isinstance(made, torch.Tensor) or made.dtype != torch.int64 or made.shape[-1:] != (2,):
        return None
    numbers = torch.div(made - _FIRST, _STEP, rounding_mode="floor")
    one, other = numbers.unbind(-1)
    same = torch.equal(numbers * _STEP + _FIRST, made) and torch.equal(one + 1, other)
    inside = not one.numel() or (
        bool((one % 2 == 0).all()) and int(one.min()) >= 0 and int(one.max()) < 2 * count
    )
    return one // 2 if same and inside else None


def unmoved(group: Group, shapes: Mapping[str, tuple[int, ...]], model: Any) -> str:
    """Return why codes cannot take the way of a group from a file into the model; empty where they can.

    Args:
        group: what becomes of some tensors.
        shapes: of these, k last, by name.
        model: the model, which may be on the meta device.
    """
    kinds = {type(operation) for operation in group.converter.operations} if group.converter else set()
    if kinds <= {*KNOWN, Transpose} or any(len(shapes[name]) < 2 for name in group.names):
        return ""
    index = moved(group, {name: shapes[name][:-1] for name in group.names}, model)
    if index is not None and all(target in index for target in group.targets):
        return ""
    words = ", ".join(sorted(kind.__name__ for kind in kinds - {*KNOWN}))
    return f"{words} does more than move rows while it is loaded, so it takes no codes from a file"


def gathered(parts: list[Recipe], index: torch.Tensor) -> Recipe:
    """Return the recipe of rows of several tensors, put together anew.

    Args:
        parts: of one weight each, ``[..., n, k]``.
        index: as `moved` gives it.
    """
    ends = torch.tensor([math.prod(part.shape[:-1]) for part in parts], device="cpu").cumsum(0)
    source = torch.bucketize(index, ends, right=True)
    used = [int(number) for number in source.unique()]  # the others may have another k
    flat = [part.reshape(math.prod(part.shape[:-1]), part.shape[-1]) for part in parts]
    begins = torch.cat([torch.zeros(1, dtype=ends.dtype, device="cpu"), ends[:-1]])
    shift, at = begins.clone(), 0
    for number in used:
        shift[number] -= at
        at += flat[number].shape[0]
    whole = concat([flat[number] for number in used], 0)
    taken = [
        whole.take(start, start + (count - 1) * step + 1, step)
        for start, count, step in _runs(index - shift[source])
    ]
    return concat(taken, 0).reshape(*index.shape, whole.shape[-1])


def _runs(index: torch.Tensor) -> Iterator[tuple[int, int, int]]:
    """Yield first number, count and distance of rows that lie at one distance from each other."""
    numbers: list[int] = index.reshape(-1).tolist()
    at = 0
    while at < len(numbers):
        step = numbers[at + 1] - numbers[at] if at + 1 < len(numbers) else 1
        end = at + 1
        while step > 0 and end < len(numbers) and numbers[end] - numbers[end - 1] == step:
            end += 1
        yield numbers[at], end - at, max(step, 1)
        at = end


__all__ = ["KNOWN", "gathered", "moved", "unmoved"]
