"""What a conversion of transformers does to rows, found out by trying it on row numbers.

Codes and scales can go where whole rows go. Few kinds of conversion are known by their class; any other is applied to
tensors that hold the numbers of their rows in a single column. What comes out says which row is where, or that more was
done than to move rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.core_model_loading import WeightConverter

from mxfp4_core.dialects import Recipe, concat
from mxfp4_transformers import converters
from mxfp4_transformers.converters import Group


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
            numbers = torch.arange(at, at + count, device="cpu").reshape(*rows[name], 1)
            converter.add_tensor(group.targets[0], name, pattern, numbers)
            at += count
    try:
        made = converter.convert(group.targets[0], model=model, config=model.config)
    except Exception:  # an operation may want anything of its tensors, and raise anything
        return None
    result = {name: each[0] if isinstance(each, list) else each for name, each in made.items()}
    whole = all(each.dtype == torch.int64 and each.shape[-1:] == (1,) for each in result.values())
    return {name: each.squeeze(-1) for name, each in result.items()} if whole else None


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


__all__ = ["gathered", "moved"]
