"""What a model is run with: the first of several guesses that its unquantised self accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from architectures.given import GIVEN
from architectures.shrink import VOCAB

_TOKENS = 12


def guesses(model: Any) -> Iterator[dict[str, Any]]:
    """Yield arguments that a model might take, the likeliest first."""
    main = getattr(model, "main_input_name", "input_ids")
    encodes = bool(getattr(model.config, "is_encoder_decoder", False))
    ids = torch.arange(5, 5 + _TOKENS)[None] % (VOCAB // 2)
    second = {"decoder_input_ids": ids[:, :6]} if encodes else {}
    size = _image_size(model)
    options: list[dict[str, Any]] = []
    if main == "pixel_values":
        for each in (size, 32, 64, 224):
            options.append({"pixel_values": _noise(1, _channels(model), each, each)})
    elif main in ("input_features", "input_values"):
        mel = _number(model, "num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels") or 32
        for length in (_length(model), 64, 128, 3000):
            options.append({main: _noise(1, mel, length)})
            options.append({main: _noise(1, length, mel)})
        options += [{main: _noise(1, 4000)}, {main: _noise(1, 1, 4000)}, {main: _noise(1, 64, 160)}]
    for each in options:
        yield {**each, **second}
        yield each
        yield {**each, "input_ids": ids}
    yield {"input_ids": ids, **second}
    yield {"input_ids": ids}
    for each in (size, 32, 64):
        image = _noise(1, _channels(model), each, each)
        yield {"input_ids": ids, "pixel_values": image, **second}
        yield {"input_ids": ids, "pixel_values": image, "qformer_input_ids": ids}
    yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), **second}
    yield {"inputs": ids}
    yield dict(model.dummy_inputs)


def accepted(model: Any) -> tuple[dict[str, Any] | None, Any, str]:
    """Return the arguments that a model runs with, its output, and why not where it runs with none.

    Args:
        model: unquantised, in float32.
    """
    why = ""
    for make in _makers(model):
        try:
            given = make()
            output = run(model, given)
        except Exception as error:  # a wrong guess fails in any way
            why = why or f"{type(error).__name__}: {error}"
            continue
        found = list(flat(output))
        if not found:
            why = "no output"
        elif not all(each.isfinite().any() for each in found):
            why = "the unquantised model gives NaN"
        else:
            return given, output, ""
    return None, None, " ".join(why.split())[:300]


def _makers(model: Any) -> Iterator[Callable[[], dict[str, Any]]]:
    own = GIVEN.get(model.config.model_type)
    if own is not None:
        yield partial(own, model)
    yield from (partial(dict, given) for given in guesses(model))


@torch.no_grad()
def run(model: Any, given: dict[str, Any]) -> Any:
    """Run a model, with the floats of its inputs in its dtype; random numbers of the model begin alike."""
    torch.manual_seed(0)
    for config in _configs(model):
        if getattr(config, "use_cache", False):
            config.use_cache = False  # a cache is no output, and some cannot be made for so few layers
    cast = {
        key: value.to(model.dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in given.items()
    }
    return model(**cast)


def flat(output: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of floats in an output, in order; caches and other objects are left out."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point() and output.numel():
            yield output
    elif isinstance(output, dict):
        for key, value in output.items():
            if "past_key" not in key and "cache" not in key:
                yield from flat(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from flat(value)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _configs(model: Any) -> Iterator[Any]:
    yield model.config
    for key in ("vision_config", "audio_config", "encoder_config", "encoder", "text_config"):
        if getattr(model.config, key, None) is not None:
            yield getattr(model.config, key)


def _number(model: Any, *names: str) -> int:
    found = (getattr(config, name, None) for config in _configs(model) for name in names)
    return next((value for value in found if type(value) is int and value > 0), 0)


def _image_size(model: Any) -> int:
    for config in _configs(model):
        size = getattr(config, "image_size", None)
        if isinstance(size, (list, tuple)) and size:
            return int(size[0])
        if type(size) is int:
            return size
    return 32


def _channels(model: Any) -> int:
    return _number(model, "num_channels", "in_channels") or 3


def _length(model: Any) -> int:
    return 2 * _number(model, "max_source_positions", "max_position_embeddings") or 256


__all__ = ["accepted", "flat", "guesses", "run"]
