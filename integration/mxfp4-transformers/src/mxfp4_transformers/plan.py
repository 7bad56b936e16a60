"""What a load will read, decided from headers before a weight is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from transformers.core_model_loading import WeightTransform

from mxfp4_core.checkpoint import TensorInfo
from mxfp4_core.errors import LoadError
from mxfp4_core.jobs import FLOATS
from mxfp4_core.modules import ModelPlan, Weight
from mxfp4_transformers import converters
from mxfp4_transformers.feed import WORDS
from mxfp4_transformers.messages import some


def check_biases(model: Any, plan: ModelPlan, there: Collection[str]) -> None:
    """Check that the checkpoint has whatever else the modules hold whose weights become MXFP4.

    transformers fills what is missing with the numbers that a class of its own begins with; of a module that is not
    its own any more it knows none, and leaves what was in the memory.

    Args:
        model: with its own modules.
        plan: what is replaced.
        there: the parameters of the model for which the checkpoint has tensors.

    Raises:
        LoadError: a bias is missing.
    """
    ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    lost = [
        name
        for site in plan.sites
        for name in (site.name(own) for own, _ in site.module.named_parameters(recurse=False))
        if name not in plan.weights
        and name not in there
        and not any(re.search(pattern, name) for pattern in ignored)
    ]
    if lost:
        raise LoadError(
            "the checkpoint lacks biases of quantised modules",
            seen=some(lost),
            rule="a bias is read from the checkpoint, never left to what was in memory",
            fix="complete the checkpoint, or use the config.json that belongs to it",
        )


def sources(
    headers: Mapping[str, TensorInfo],
    weights: Mapping[str, Weight],
    conversions: Sequence[WeightTransform],
    model: Any,
) -> dict[str, list[str]]:
    """Return the names in the checkpoint of each weight that a load quantises; empty where they cannot be known.

    Raises:
        LoadError: a weight is not in the checkpoint, or is not in high precision there.
    """
    found: dict[str, list[str]] = {}
    for source, targets in converters.destinations(headers, conversions, model).items():
        for target in targets:
            found.setdefault(target, []).append(source)
    if headers and (lost := [name for name in weights if name not in found]):
        raise LoadError(
            "the checkpoint lacks weights that are to be quantised",
            seen=some(lost),
            rule="a weight is quantised from the checkpoint, never from random numbers",
            fix="complete the checkpoint, or keep these names with ignore",
        )
    for name in weights:
        for source in found.get(name, ()):
            if (dtype := headers[source].dtype) not in FLOATS:
                # The loader casts to the dtype of the model, and then codes look like weights.
                raise LoadError(
                    f"{source} cannot be quantised",
                    seen=f"dtype {dtype}",
                    rule=f"a weight is {', '.join(FLOATS)}",
                    fix="load the checkpoint in high precision from which this one was made",
                )
    return found


def rounded(
    headers: Mapping[str, TensorInfo], found: Mapping[str, list[str]], plan: ModelPlan, dtype: torch.dtype
) -> dict[str, torch.dtype]:
    """Return the dtype from which a weight is quantised that a cast to the dtype of the model would round, by name.

    It is the dtype in the checkpoint, one for each module.

    Args:
        headers: what the checkpoint holds.
        found: the names there of each weight, as `sources` returns them.
        plan: what is quantised.
        dtype: of the model.
    """
    known = {word: each for each, word in WORDS.items()}
    result: dict[str, torch.dtype] = {}
    for site in plan.sites:
        names = [site.name(weight) for weight in site.weights]
        stored = {known.get(headers[source].dtype) for name in names for source in found.get(name, ())}
        wide = stored.pop() if len(stored) == 1 else torch.float32  # which holds what any other does
        if wide is not None and dtype not in (wide, torch.float32):
            result |= dict.fromkeys(names, wide)
    return result
