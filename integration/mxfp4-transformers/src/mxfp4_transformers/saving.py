"""Save a model in our dialect or another, after a check that it can be read again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.core_model_loading import WeightConverter, WeightTransform

from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.dialects import NATIVE, Description, Entry, Source, get
from mxfp4_core.errors import ConfigError, DialectError, LoadError, OutputError
from mxfp4_core.jobs import convert_checkpoint
from mxfp4_core.modules import ModelPlan, Weight, weight_readers
from mxfp4_transformers import converters
from mxfp4_transformers.compose import compose
from mxfp4_transformers.config import Mxfp4CoreConfig
from mxfp4_transformers.messages import some
from mxfp4_transformers.undo import Undo

_WORDS = {torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3", torch.float32: "F32"}


def unsayable(conversions: Iterable[WeightTransform], plan: ModelPlan) -> DialectError | None:
    """Return the error of saving weights about which our dialect cannot say everything, or None.

    Args:
        conversions: what ``save_pretrained`` will undo.
        plan: the weights: with a part of the input beside a weight that is saved as several.
    """
    shared = {
        name: weight.format
        for name, weight in plan.weights.items()
        if any(part.operand == "input" for part in weight.kind.parts)
    }
    for entry in conversions:
        if isinstance(entry, WeightConverter) and shared and converters.feeds(entry, list(shared)):
            return _unsayable(
                f"the format {min(shared.values())} in weights that are saved as several: "
                f"{entry._original_target_patterns[0]}",
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


def facts(undo: Undo, model: Any, plan: ModelPlan, config: CoreConfig) -> dict[str, Any]:
    """Return what ``quantization_config`` says about single weights, under the names that they are saved with."""
    shapes: dict[str, list[int]] = {}
    transposed: list[str] = []
    for block, turned in {(weight.kind.block, weight.transposed) for weight in plan.weights.values()}:
        alike = {
            name: torch.empty(weight.shape, dtype=torch.uint8, device="meta")
            for name, weight in plan.weights.items()
            if (weight.kind.block, weight.transposed) == (block, turned)
            and (turned or weight.shape[-1] % block)
        }
        saved = undo.saved(model, alike) if alike else {}
        shapes |= {name: list(tensor.shape) for name, tensor in saved.items() if tensor.shape[-1] % block}
        transposed += saved if turned else ()
    said = NATIVE.describe(Description({}, config, _by_format(undo, model, plan), (), plan.profile))
    told = ("weights_profile", "weights_format", "formats")
    found: dict[str, Any] = {key: said[key] for key in told if key in said}
    return {**found, "shapes": shapes, "transposed": sorted(transposed)}


def _by_format(undo: Undo, model: Any, plan: ModelPlan) -> list[Entry]:
    """Return entries with the formats of the weights, under the names that they are saved with where it matters."""
    modes = {site.name(name): plan.activations[site.path] for site in plan.sites for name in site.weights}
    kinds: dict[tuple[str, str, str], list[Weight]] = {}
    for weight in plan.weights.values():
        mode = modes.get(weight.name, "")
        kinds.setdefault((weight.format, weight.profile, mode), []).append(weight)
    if len({format for format, _, _ in kinds}) == 1:
        return [Entry(each.name, each.shape, {}, each.format) for each in plan.weights.values()]
    entries: list[Entry] = []
    for (format, profile, mode), alike in kinds.items():
        state = {each.name: torch.empty(each.shape, dtype=torch.uint8, device="meta") for each in alike}
        for name, tensor in undo.saved(model, state).items():
            entries.append(Entry(name, tuple(tensor.shape), {}, format, profile=profile, activation=mode))
    return entries


def check_readable(
    undo: Undo, model: Any, plan: ModelPlan, config: Mxfp4CoreConfig, kept: Mapping[str, torch.Tensor]
) -> None:
    """Check that what ``save_pretrained`` is about to write will be read as the weights that the model has.

    Args:
        undo: what saving undoes.
        model: loaded.
        plan: its quantised weights.
        config: what ``config.json`` will say.
        kept: everything else that is saved, by name in the model.

    Raises:
        DialectError: it would not; nothing was written.
    """
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in kept.items()
    }
    for weight in plan.weights.values():
        state |= {weight.names[part]: tensor for part, tensor in weight.empty("meta").items()}
    saved = undo.saved(model, state)
    headers = {
        name: (_WORDS.get(tensor.dtype, "BF16"), tuple(tensor.shape)) for name, tensor in saved.items()
    }
    described = {**model.config.to_dict(), "quantization_config": config.to_dict()}
    try:
        entries = NATIVE.read(Source(described, headers)).entries
        groups = converters.groups(entries, converters.default_conversions(model), model, known=state)
        found = compose(entries, groups, model)
    except (DialectError, LoadError) as error:
        raise _unreadable(error.seen) from error
    wrong = [
        name
        for name, weight in plan.weights.items()
        if name not in found
        or {part: made.shape for part, made in found[name].parts.items()} != weight.shapes
    ]
    wrong += [name for name in found if name not in plan.weights]
    if wrong:
        raise _unreadable(f"{some(wrong)} would come back otherwise")


def _unreadable(seen: str) -> DialectError:
    return DialectError(
        "the model cannot be saved so that it can be read again",
        seen=seen,
        rule="a folder is written when every weight in it has its parts and its place in the model",
        fix="keep the checkpoint from which it was loaded, or pass save_original_format=False",
    )


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
            ``mxfp4_core.dialects.names()``, or ``"auto"``: compressed-tensors where it can say everything and others
            can run the model, else our own; the one of the config if None, which is ``"auto"`` unless it names one.
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
    plan: ModelPlan = model.hf_quantizer.plan
    if chosen == "auto" and {site.path for site in plan.sites} & weight_readers(model).keys():
        chosen = NATIVE.name  # others load a folder without the weights that its code reads
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
    except (OSError, SafetensorError) as error:  # the library of safetensors has its own word for a full disk
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _unwritable(target: Path, error: Exception) -> OutputError:
    return OutputError(
        f"cannot save to {target}",
        seen=str(error),
        rule="the folder around it takes a copy of the model, and one more while it is converted",
        fix="make room, or choose another place",
    )
