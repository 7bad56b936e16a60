"""Names on disk: codes and scales of experts are saved under the names that the experts came from."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers.core_model_loading import WeightConverter, WeightTransform, revert_weight_conversion

from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.format import BLOCK
from mxfp4_transformers import compat
from mxfp4_transformers.ops import SCALE, Converter, Direct
from mxfp4_transformers.plan import Plan


def with_scales(conversions: Iterable[WeightTransform], plan: Plan) -> list[WeightTransform]:
    """Return conversions that treat codes and scales alike.

    A converter that stacks experts gets a companion for their scales. One that does more than move whole rows (a
    transposition) is left out: our files have those weights as the module here holds them.
    """
    return list(_with_scales(conversions, plan))


def _with_scales(conversions: Iterable[WeightTransform], plan: Plan) -> Iterator[WeightTransform]:
    for entry in conversions:
        if not isinstance(entry, WeightConverter) or not compat.feeds(entry, plan.weights):
            yield entry
        elif compat.keeps_rows_whole(entry):
            yield compat.rebuilt(Converter, entry)
            yield compat.rebuilt(Converter, entry, SCALE)


def for_saving(conversions: Iterable[WeightTransform], plan: Plan) -> list[WeightTransform]:
    """Return what ``save_pretrained`` is to undo, from what the load used.

    The converters of a load that quantised lack the companions for scales, which the checkpoint did not have.
    """
    companions = {
        pattern
        for entry in conversions
        if isinstance(entry, WeightConverter)
        for pattern in entry._original_target_patterns
        if pattern.endswith(SCALE)
    }
    plain = [
        entry
        for entry in conversions
        if not isinstance(entry, Direct)
        and not (isinstance(entry, WeightConverter) and set(entry._original_target_patterns) & companions)
    ]
    return with_scales(plain, plan)


def facts(model: Any, plan: Plan, config: CoreConfig) -> dict[str, Any]:
    """Return what ``quantization_config`` says about single weights, under the names that they are saved with."""
    odd = {
        name: weight for name, weight in plan.weights.items() if weight.transposed or weight.shape[-1] % BLOCK
    }
    profiles = {weight.profile for weight in plan.weights.values()}
    saved: dict[str, tuple[bool, list[int]]] = {}
    for name, weight in odd.items():
        meta = torch.empty(weight.codes_shape, dtype=torch.uint8, device="meta")
        for each, tensor in revert_weight_conversion(model, {name: meta}).items():
            saved[each] = weight.transposed, [*tensor.shape[:-1], weight.shape[-1]]
    return {
        "weights_profile": profiles.pop() if len(profiles) == 1 else "",
        "shapes": {name: shape for name, (_, shape) in saved.items() if shape[-1] % BLOCK},
        "transposed": sorted(name for name, (transposed, _) in saved.items() if transposed),
    }
