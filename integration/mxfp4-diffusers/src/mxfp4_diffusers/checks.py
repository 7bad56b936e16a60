"""What is checked around a load and a save, before a weight is read or a byte is written."""

from __future__ import annotations

from typing import Any

from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.dialects import NATIVE, Description, Entry, Source
from mxfp4_core.errors import ConfigError, DialectError, LoadError
from mxfp4_core.jobs import FLOATS
from mxfp4_core.modules import ModelPlan
from mxfp4_core.naming import Headers, ModelView
from mxfp4_diffusers.compat import Method
from mxfp4_diffusers.config import METHOD, Mxfp4CoreConfig

_WORDS = {"uint8": "U8", "float8_e4m3fn": "F8_E4M3", "float32": "F32"}


def check_offload(device_map: Any) -> None:
    """Check that a device map leaves every weight where it computes.

    Raises:
        ConfigError: a part of the model would lie on the CPU beside an accelerator, or on the disk.
    """
    if not isinstance(device_map, dict):
        return
    places = {str(name) or "the model": str(device) for name, device in device_map.items()}
    away = [f"{name} on {device}" for name, device in places.items() if device in ("cpu", "disk")]
    if away and set(places.values()) != {"cpu"}:
        # accelerate would move MXFP4 weights, which are buffers, to the accelerator for good.
        raise ConfigError(
            "device_map offloads modules",
            seen=", ".join(away[:5]),
            rule="MXFP4 weights stay where they compute",
            fix="use more devices or a smaller model; MXFP4 takes about a quarter of BF16",
        )


def check_single(*, stored: bool) -> None:
    """Check that a single file is to be quantised: diffusers gives no way to look for parts of weights in it.

    Args:
        stored: the config says that its weights are quantised.

    Raises:
        ConfigError: they are.
    """
    if stored:
        raise ConfigError(
            "from_single_file cannot load weights that are quantised",
            seen="a config of a quantised checkpoint",
            rule="a single file is in high precision, and is quantised while it loads",
            fix="load the folder of the quantised model with from_pretrained, or pass Mxfp4Config() for a file in "
            "high precision",
        )


def check_complete(view: ModelView, plan: ModelPlan, headers: Headers, *, stored: bool) -> None:
    """Check that a checkpoint has all of a model: diffusers leaves what is missing without memory, and warns.

    Args:
        view: the model, with its own modules.
        plan: what becomes MXFP4, or is.
        headers: what the checkpoint holds, by name.
        stored: the weights of the plan are quantised in it; else they are to be.

    Raises:
        LoadError: a tensor is missing, or is not in high precision.
    """
    if lost := [name for name in view.parameters if name not in headers]:
        raise LoadError(
            f"the checkpoint lacks tensors of {view.model}",
            seen=", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else ""),
            rule="every weight is read from the checkpoint, never left to what was in memory",
            fix="complete the checkpoint, a shard may be missing, or use the config.json that belongs to it",
        )
    for name in () if stored else plan.weights:
        if (dtype := headers[name][0]) not in FLOATS:
            raise LoadError(
                f"{name} cannot be quantised",
                seen=f"dtype {dtype}",
                rule=f"a weight is {', '.join(FLOATS)}",
                fix="load the checkpoint in high precision from which this one was made; one that msmodelslim or "
                "others quantised takes `mxfp4 convert --to mxfp4-core` first",
            )


def described(core: CoreConfig, plan: ModelPlan) -> tuple[Any, dict[str, Any]]:
    """Return the ``quant_method`` of a saved copy, and what it says about single weights."""
    modes = {site.name(name): plan.activations[site.path] for site in plan.sites for name in site.weights}
    entries = [
        Entry(
            weight.name,
            weight.shape,
            {},
            weight.format,
            weight.transposed,
            profile=weight.profile,
            activation=modes.get(weight.name, ""),
        )
        for weight in plan.weights.values()
    ]
    said = NATIVE.describe(Description({}, core, entries, (), plan.profile))
    return Method(METHOD), {key: said[key] for key in said if key not in (NATIVE.settings(said) or {})}


def check_readable(config: Mxfp4CoreConfig, plan: ModelPlan) -> None:
    """Check that what ``save_pretrained`` is about to write will be read as the weights that the model has.

    Raises:
        DialectError: it would not; nothing was written.
    """
    headers = {
        weight.names[part.name]: (_WORDS[part.dtype], weight.shapes[part.name])
        for weight in plan.weights.values()
        for part in weight.kind.parts
    }
    found = NATIVE.read(Source({"quantization_config": config.to_dict()}, headers)).entries
    wrong = [
        name
        for name, weight in plan.weights.items()
        if name not in found or found[name].shape != weight.shape
    ]
    if wrong := [*wrong, *(name for name in found if name not in plan.weights)]:
        raise DialectError(
            "the model cannot be saved so that it can be read again",
            seen=f"{', '.join(wrong[:5])} would come back otherwise",
            rule="a folder is written when every weight in it has its parts and its place in the model",
            fix="keep the checkpoint from which it was loaded",
        )


__all__ = ["check_complete", "check_offload", "check_readable", "check_single", "described"]
