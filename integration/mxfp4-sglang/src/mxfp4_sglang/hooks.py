"""Functions of SGLang that are wrapped, each by SGLang's own registry of hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mxfp4_core.loader import METHODS, StoredTensors
from mxfp4_sglang.config import Mxfp4QuantizationConfig
from mxfp4_sglang.words import STACKED


def verify(original: Callable[..., Any], model_config: Any) -> Any:
    """Let our methods pass on ROCm, where SGLang has a list of its own that nothing can be added to.

    The error is the last check of the function: what follows it only warns about speed.
    """
    try:
        return original(model_config)
    except ValueError as error:
        if model_config.quantization in METHODS and "supported in ROCm" in str(error):
            return None
        raise


def configured(
    original: Callable[..., Any], model_config: Any, load_config: Any, *args: Any, **kwargs: Any
) -> Any:
    """Tell our config which model it is for, before a layer is built."""
    config = original(model_config, load_config, *args, **kwargs)
    if isinstance(config, Mxfp4QuantizationConfig):
        config.model.config = model_config.hf_config.to_dict()
        config.model.made_up = (
            str(getattr(load_config.load_format, "value", load_config.load_format)) == "dummy"
        )
        config.model.folder = model_config.model_path if Path(model_config.model_path).is_dir() else None
    return config


def weights(
    original: Callable[..., Any], loader: Any, source: Any, *args: Any, **kwargs: Any
) -> Iterable[Any]:
    """Read a checkpoint that is quantised, in whatever dialect, under the names that SGLang maps to its parameters.

    Raises:
        CheckpointError, DialectError: it is damaged, or lacks a part of a weight.
    """
    config = source.model_config
    if config is None or config.quantization not in METHODS:
        return original(loader, source, *args, **kwargs)
    path = source.model_or_path
    if not Path(path).is_dir():
        path = loader._prepare_weights(path, source.revision, source.fall_back_to_pt)[0]
    stored = StoredTensors.open(path)
    if stored is None:
        return original(loader, source, *args, **kwargs)
    stream = stored.stacks() if stored.checkpoint.config.get("model_type") in STACKED else iter(stored)
    return ((source.prefix + name, tensor) for name, tensor in stream)


__all__ = ["configured", "verify", "weights"]
