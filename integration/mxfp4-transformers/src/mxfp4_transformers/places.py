"""Where each tensor of a checkpoint lies in the parameters of a model.

A trainer sends tensors under the names of the checkpoint, one after the other and in any order. What saving would do to
a parameter says where each of them belongs: it is done to a tensor that holds its own row numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from mxfp4_core.loader import Region
from mxfp4_core.modules import Weight


@dataclass(frozen=True)
class Place:
    """Where one tensor goes.

    Attributes:
        parameter: name in the model.
        region: of a quantised weight; None for a parameter in high precision.
        index: of a parameter in high precision: the elements that the tensor gives, in its own order; None for all.
        shape: the shape that the tensor has.
        k_first: the tensor has k before n.
    """

    parameter: str
    region: Region | None
    index: torch.Tensor | None
    shape: tuple[int, ...]
    k_first: bool = False


def find_places(
    model: Any, weights: Mapping[str, Weight], kept: Mapping[str, torch.Tensor]
) -> dict[str, Place]:
    """Return the place of each tensor that a model is made of, by its names in the checkpoint and in the model.

    Args:
        model: loaded by this package; it knows its conversions.
        weights: its quantised weights, by name.
        kept: everything else that a checkpoint has, by name.
    """
    found: dict[str, Place] = {}
    for name, weight in weights.items():
        found |= _of_weight(model, name, weight)
    for name, tensor in kept.items():
        whole = Place(name, None, None, tuple(tensor.shape))
        given = revert_weight_conversion(model, {name: torch.empty(tensor.shape, device="meta")})
        if len(given) == 1 and next(iter(given.values())).shape == tensor.shape:
            found |= {name: whole, **dict.fromkeys(given, whole)}
            continue
        numbers = torch.arange(tensor.numel()).view(tensor.shape)
        for source, index in revert_weight_conversion(model, {name: numbers}).items():
            found[source] = Place(name, None, index, tuple(index.shape))
        found[name] = whole
    return found


def _of_weight(model: Any, name: str, weight: Weight) -> dict[str, Place]:
    """Follow the rows of a quantised weight, in a tensor that has one column and so shows where k is."""
    *stack, n, k = weight.shape
    rows = torch.arange(torch.Size((*stack, n)).numel()).view(*stack, n, 1)
    turned = rows.transpose(-1, -2) if weight.transposed else rows
    found: dict[str, Place] = {}
    for source, index in {**revert_weight_conversion(model, {name: turned}), name: turned}.items():
        k_first = index.shape[-2] == 1 and (n > 1 or weight.transposed)
        shape = (*index.shape[:-2], k, index.shape[-1]) if k_first else (*index.shape[:-1], k)
        if (region := _region(index, n, k)) is not None:  # else it has no place that a target could take
            found[source] = Place(name, region, None, tuple(shape), k_first)
    return found


def _region(index: torch.Tensor, n: int, k: int) -> Region | None:
    numbers = index.reshape(-1)
    first, last = divmod(int(numbers[0]), n), divmod(int(numbers[-1]), n)
    experts, rows = (first[0], last[0] + 1), (first[1], last[1] + 1)
    wanted = torch.arange(experts[0], experts[1])[:, None] * n + torch.arange(*rows)
    return Region(experts, rows, (0, k)) if torch.equal(numbers, wanted.reshape(-1)) else None


__all__ = ["Place", "find_places"]
