"""Diffusion models: which of their linears become MXFP4, and who computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mxfp4_core.arithmetic import MXFP4, MXFP8
from mxfp4_core.loader import StoredTensors
from mxfp4_sglang import compat
from mxfp4_sglang.linear import LinearWeights
from mxfp4_sglang.method import ModelMethod
from mxfp4_sglang.words import METHOD, METHOD_FP8

SUFFIXES = tuple({part.suffix for form in (MXFP4, MXFP8) for part in form.parts if part.suffix})
"""What follows the name of a weight in the names of its parts."""

_Linear: Any
_LinearMethod: Any
_Unquantized: Any
_Config: Any
_Linear, _LinearMethod, _Unquantized, _Config = compat.diffusion_classes()


class Mxfp4DiffusionLinearMethod(LinearWeights, _LinearMethod):
    """A linear layer of a diffusion model."""

    stay = False  # the server refuses a parameter without memory when a model is loaded
    plain = _Unquantized


class Mxfp4DiffusionConfig(ModelMethod, _Config):
    """``--quantization mxfp4-core`` of the diffusion server."""

    def ignoring(self, patterns: list[str]) -> None:
        """Keep layers that ``--quantization-ignored-layers`` names, like ``ignore`` of the config."""
        core = self.model.core
        self.model.core = core.model_copy(update={"ignore": [*core.ignore, *patterns]})

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """Return who makes and computes the weights of a layer; None for what the server computes by itself.

        Raises:
            PatternError: a pattern splits what the server fuses.
        """
        if not isinstance(layer, _Linear):
            return None
        own: Any = layer
        name = self.model.unused(prefix, f"{type(layer).__name__}")
        self.model.fused = self.packed_modules_mapping or {}
        decision = self.model.decide(name, (own.output_size, own.input_size))
        if not decision.quantize:
            self.model.keep(name, "linear", decision.reason, torch.device("cpu"))
            return _Unquantized()
        return Mxfp4DiffusionLinearMethod(self.model, name, decision)


class Mxfp8DiffusionConfig(Mxfp4DiffusionConfig):
    """``--quantization mxfp8-core`` of the diffusion server."""

    method = METHOD_FP8


CONFIGS: Mapping[str, type] = {METHOD: Mxfp4DiffusionConfig, METHOD_FP8: Mxfp8DiffusionConfig}
"""The class of each method."""


def get_config(original: Callable[..., Any], quantization: str) -> Any:
    """Return the class of a method; the server's own are left to it."""
    return CONFIGS[quantization] if quantization in CONFIGS else original(quantization)


def names_mapping(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Map the name of a part as the name of its weight, where the server knows the latter only.

    Some of its tables fuse ``to_q.weight`` with its neighbours, and have no line for ``to_q.weight_scale``.
    """
    find = original(*args, **kwargs)
    known = kwargs.get("valid_target_names") or (args[1] if len(args) > 1 else None) or ()

    def mapped(name: str) -> Any:
        target, *place = find(name)
        for suffix in SUFFIXES:
            if target not in known and name.endswith(f".weight{suffix}"):
                weight, *of_weight = find(name.removesuffix(suffix))
                if f"{weight}{suffix}" in known:
                    return f"{weight}{suffix}", *of_weight
        return target, *place

    return mapped


def resolved(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Tell our config which component it is for, and which layers the command line keeps.

    The server hands its list of ignored layers to methods of its own only.
    """
    config = original(*args, **kwargs)
    if isinstance(config, Mxfp4DiffusionConfig):
        path = str(kwargs.get("component_model_path") or "")
        config.model.config = dict(kwargs.get("hf_config") or {})
        config.model.folder = path if config.model.stored and Path(path).is_dir() else None
        if config.model.folder and (folder := StoredTensors.open(path)) is not None:
            architecture = (
                kwargs.get("arch_config") or kwargs["server_args"].pipeline_config.dit_config.arch_config
            )
            names = compat.diffusion_names(architecture, folder.entries)
            config.model.translated = {
                engine.removesuffix(".weight"): name.removesuffix(".weight") for engine, name in names.items()
            }
        if ignored := getattr(kwargs.get("server_args"), "quantization_ignored_layers", None):
            config.ignoring(list(ignored))
    return config


__all__ = [
    "CONFIGS",
    "Mxfp4DiffusionConfig",
    "Mxfp4DiffusionLinearMethod",
    "Mxfp8DiffusionConfig",
    "get_config",
    "names_mapping",
    "resolved",
]
