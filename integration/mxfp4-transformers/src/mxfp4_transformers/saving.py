"""Names on disk: the parts of experts are saved under the names that the experts came from."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.core_model_loading import WeightConverter, WeightTransform, revert_weight_conversion

from mxfp4_core.dialects import NATIVE, get
from mxfp4_core.errors import ConfigError, DialectError, OutputError
from mxfp4_core.jobs import convert_checkpoint
from mxfp4_core.modules import ModelPlan
from mxfp4_transformers import converters
from mxfp4_transformers.ops import Converter, Direct

_PLAIN = "mxfp4"  # the format of a checkpoint that names none


def with_parts(conversions: Iterable[WeightTransform], plan: ModelPlan) -> list[WeightTransform]:
    """Return conversions that treat the parts of a weight alike.

    A converter whose names end where the names of weights end gets a companion for each further part; one for whole
    modules takes them along by itself. One that does more than move whole rows (a transposition) is left out: our files
    have those weights as the module here holds them.
    """
    return list(_with_parts(conversions, plan))


def _with_parts(conversions: Iterable[WeightTransform], plan: ModelPlan) -> Iterator[WeightTransform]:
    suffixes = _suffixes(plan)
    for entry in conversions:
        if not isinstance(entry, WeightConverter) or not converters.feeds(entry, plan.weights):
            yield entry
        elif converters.keeps_rows_whole(entry):
            yield converters.rebuilt(Converter, entry)
            if converters.names_weights(entry, plan.weights):
                yield from (converters.rebuilt(Converter, entry, suffix) for suffix in suffixes)


def _suffixes(plan: ModelPlan) -> tuple[str, ...]:
    """Return what is appended to the name of a weight for its parts but the first."""
    kinds = dict.fromkeys(weight.kind for weight in plan.weights.values())
    return tuple(dict.fromkeys(part.suffix for kind in kinds for part in kind.parts if part.suffix))


def for_saving(conversions: Iterable[WeightTransform], plan: ModelPlan) -> list[WeightTransform]:
    """Return what ``save_pretrained`` is to undo, from what the load used.

    The converters of a load that quantised lack the companions for further parts, which the checkpoint did not have.
    """
    companions = {
        pattern
        for entry in conversions
        if isinstance(entry, WeightConverter)
        for pattern in entry._original_target_patterns
        if pattern.endswith(_suffixes(plan))
    }
    plain = [
        entry
        for entry in conversions
        if not isinstance(entry, Direct)
        and not (isinstance(entry, WeightConverter) and set(entry._original_target_patterns) & companions)
    ]
    return with_parts(plain, plan)


def unsayable(conversions: Iterable[WeightTransform], plan: ModelPlan) -> DialectError | None:
    """Return the error of saving weights about which our dialect cannot say everything, or None.

    Args:
        conversions: what ``save_pretrained`` will undo.
        plan: the weights: of several formats, or with a part of the input beside a weight that is saved as several.
    """
    kinds = sorted({weight.format for weight in plan.weights.values()})
    if len(kinds) > 1:
        return _unsayable(f"formats {', '.join(kinds)}", "all weights of a checkpoint have one format")
    shared = [
        name
        for name, weight in plan.weights.items()
        if any(part.operand == "input" for part in weight.kind.parts)
    ]
    for entry in conversions:
        if isinstance(entry, WeightConverter) and shared and converters.feeds(entry, shared):
            return _unsayable(
                f"the format {kinds[0]} in weights that are saved as several: {entry._original_target_patterns[0]}",
                "a part of the input belongs to one weight",
            )
    return None


def _unsayable(seen: str, rule: str) -> DialectError:
    return DialectError(
        f"the model cannot be saved in the dialect {NATIVE.name}",
        seen=seen,
        rule=rule,
        fix="keep the checkpoint from which it was loaded",
    )


def facts(model: Any, plan: ModelPlan) -> dict[str, Any]:
    """Return what ``quantization_config`` says about single weights, under the names that they are saved with."""
    saved: dict[str, list[int]] = {}
    transposed: list[str] = []
    for name, weight in plan.weights.items():
        k, kind = weight.shape[-1], weight.kind
        if not (weight.transposed or k % kind.block):
            continue
        meta = torch.empty(weight.shapes[kind.parts[0].name], dtype=torch.uint8, device="meta")
        for each, tensor in revert_weight_conversion(model, {name: meta}).items():
            if k % kind.block:
                saved[each] = [*tensor.shape[:-1], k]
            if weight.transposed:
                transposed.append(each)
    formats = sorted({weight.format for weight in plan.weights.values()} - {_PLAIN})
    found = {"weights_profile": plan.profile, "shapes": saved, "transposed": sorted(transposed)}
    return {**found, "weights_format": formats[0]} if formats else found


def save(
    model: Any, path: str | os.PathLike[str], dialect: str | None = None, *, force: bool = False
) -> Path:
    """Save a model in a dialect that others read; the folder appears complete or not at all.

    The model is saved in our own dialect next to ``path`` and converted from there, file to file, so the disk holds
    both for a moment. A tokenizer is saved by its own ``save_pretrained``.

    Args:
        model: loaded by ``from_pretrained`` with this package.
        path: a folder that does not exist, or is empty.
        dialect: ``"mxfp4-core"`` (as ``model.save_pretrained``), ``"compressed-tensors"``, another one of
            ``mxfp4_core.dialects.names()``, or ``"auto"``: compressed-tensors where it can say everything, else
            our own; the one of the config if None, which is ``"auto"`` unless it names one.
        force: replace the checkpoint in ``path``; other files there stay.

    Returns:
        The folder.

    Raises:
        ConfigError: an unknown dialect, or a model without MXFP4 weights.
        DialectError: the dialect has no words for something in the model, for example stacked experts.
        OutputError: the folder exists, or cannot be written.
    """
    config: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    if getattr(config, "quant_method", None) != NATIVE.name:
        raise ConfigError(
            f"{type(model).__name__} cannot be saved as MXFP4",
            seen=f"quant_method {getattr(config, 'quant_method', None)!r}",
            rule="save writes models that were loaded with a quantization_config of mxfp4_transformers",
            fix="load it with quantization_config=mxfp4_transformers.Mxfp4Config()",
        )
    chosen, target = dialect or config.core.dialect, Path(path)
    if chosen != "auto":
        get(chosen)
    if not force and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(
            f"cannot save to {target}",
            seen="it exists",
            rule="nothing is overwritten",
            fix="choose another folder, or pass force=True",
        )
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        model.save_pretrained(work / "native")
        convert_checkpoint(work / "native", target, chosen, force=force)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _unwritable(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot save to {target}",
        seen=str(error),
        rule="the folder around it takes a copy of the model, and one more while it is converted",
        fix="make room, or choose another place",
    )
