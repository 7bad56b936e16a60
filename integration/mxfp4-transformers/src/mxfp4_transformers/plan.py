"""What a load will read, decided from headers before a weight is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

from transformers.core_model_loading import WeightTransform

from mxfp4_core.checkpoint import TensorInfo
from mxfp4_core.dialects import NATIVE, Source
from mxfp4_core.errors import CheckpointError, ConfigError, LoadError
from mxfp4_core.jobs import FLOATS
from mxfp4_core.modules import ModelPlan, Stored, Weight, plan_stored
from mxfp4_transformers import converters
from mxfp4_transformers.config import Mxfp4CoreConfig
from mxfp4_transformers.messages import some
from mxfp4_transformers.view import view_of

_PLAIN = "mxfp4"
_SCALE = "_scale"


def plan_reload(model: Any, config: Mxfp4CoreConfig, headers: Mapping[str, TensorInfo]) -> ModelPlan:
    """Find what is MXFP4 in a checkpoint of ours, and check that it is complete.

    Raises:
        CheckpointError: the checkpoint is not in safetensors files.
        LoadError: scales, codes or experts are missing.
        DialectError: shapes or dtypes are not those of our dialect.
        ConfigError: the config and the tensors contradict each other, or the weights have another format than
            ``mxfp4``.
    """
    if not headers:
        raise CheckpointError(
            "the quantised weights cannot be read",
            seen="no safetensors files",
            rule="MXFP4 checkpoints are safetensors files next to a config.json",
            fix="pass the folder that save_pretrained or `mxfp4 quantize` wrote",
        )
    _check_pairs(headers)
    tensors = {name: (header.dtype, header.shape) for name, header in headers.items()}
    contents = NATIVE.read(Source({"quantization_config": config.to_dict()}, tensors))
    _check_formats({entry.format for entry in contents.entries.values()})
    codes = [entry.parts["codes"].names[0] for entry in contents.entries.values()]
    packed: dict[tuple[str, ...], list[str]] = {}
    for source, targets in converters.destinations(
        codes, converters.default_conversions(model), model
    ).items():
        packed.setdefault(targets, []).append(source)
    known = {target for targets in packed for target in targets}
    stored = dict.fromkeys(known, Stored(profile=contents.profile))
    plan = plan_stored(model, stored, view_of(model, tensors), config.core)
    _check_places(plan, packed, headers)
    return plan


def _check_formats(formats: set[str]) -> None:
    if others := sorted(formats - {_PLAIN}):
        raise ConfigError(
            "the quantised weights cannot be read",
            seen=f"weights of the format {', '.join(others)}",
            rule=f"transformers casts floats to the dtype of the model, so that it keeps the bytes of {_PLAIN} alone",
            fix="load the folder with mxfp4_transformers.from_pretrained",
        )


def _check_pairs(headers: Mapping[str, TensorInfo]) -> None:
    codes = {name for name, header in headers.items() if header.dtype == "U8" and not name.endswith(_SCALE)}
    lost = sorted(f"{name}{_SCALE}" for name in codes if f"{name}{_SCALE}" not in headers)
    lost += sorted(
        name.removesuffix(_SCALE)
        for name, header in headers.items()
        if header.dtype == "U8" and name.endswith(_SCALE) and name.removesuffix(_SCALE) not in headers
    )
    if lost:
        raise LoadError(
            "the checkpoint is incomplete",
            seen=f"missing: {some(lost)}",
            rule="every tensor of codes has its scales, and every tensor of scales its codes",
            fix="write or download the checkpoint again",
        )


def _check_places(
    plan: ModelPlan, packed: Mapping[tuple[str, ...], list[str]], headers: Mapping[str, TensorInfo]
) -> None:
    """Check that the codes in the checkpoint fill the weights of the model, each group of them by itself."""
    for targets, names in packed.items():
        shapes = [plan.weights[target].shapes["codes"] for target in targets]
        have, want = sum(prod(headers[name].shape) for name in names), sum(map(prod, shapes))
        first = headers[names[0]].shape
        alone = len(names) == len(targets) == 1
        if have != want or (alone and first != shapes[0]):
            raise LoadError(
                f"{', '.join(targets)} cannot be filled",
                seen=f"{len(names)} tensors with {have} bytes of codes; {names[0]} is {list(first)}",
                rule=f"the model needs codes of {' and '.join(str(list(shape)) for shape in shapes)} there",
                fix="complete the checkpoint, or use the config.json that belongs to it",
            )


def check_biases(model: Any, plan: ModelPlan, names: Collection[str]) -> None:
    """Check that the checkpoint has whatever else the modules hold whose weights become MXFP4.

    transformers fills what is missing with the numbers that a class of its own begins with; of a module that is not
    its own any more it knows none, and leaves what was in the memory.

    Args:
        model: with its own modules.
        plan: what is replaced.
        names: all tensors of the checkpoint.

    Raises:
        LoadError: a bias is missing.
    """
    found = converters.destinations(names, converters.default_conversions(model), model)
    there = {target for targets in found.values() for target in targets}
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
