"""What transformers says about one class with one config after the other, each a setting away from the default."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from mxfp4_core.naming import ModelView
from mxfp4_transformers import meta
from mxfp4_transformers.view import view_of

FEW = {
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers", "decoder_layers", "depth"), 3
    ),
    **dict.fromkeys(("first_k_dense_replace",), 1),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
}
"""Fewer layers and experts than the defaults have: the same answers in less time."""
FREE = re.compile(
    r"(^|\.)(transformers_version|architectures|dtype|torch_dtype|_name_or_path|\w*_token_id|id2label|label2id|"
    r"rope_parameters|rope_scaling|problem_type|model_type|output_attentions|output_hidden_states|return_dict|use_cache|"
    r"initializer_range|chunk_size_feed_forward|\w*_attn_implementation|is_encoder_decoder)(\.|$)"
)
"""Settings that say nothing about weights."""

Config = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What was seen of a model with one config: its settings, and the views of it by kind of name."""

    changed: str
    settings: Mapping[str, Any]
    views: Mapping[str, tuple[ModelView, Mapping[str, tuple[int, ...]]]]

    @property
    def own(self) -> ModelView:
        """Return the view under the names of the model."""
        return self.views["own"][0]


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting with its path; the config of a part is a dict with a model type."""
    for key, value in config.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from flat(value, f"{prefix}{key}.")
        elif not isinstance(value, dict):
            yield prefix + key, value


def with_value(config: Config, path: str, value: object) -> Config:
    """Return a config with one setting changed."""
    head, _, rest = path.partition(".")
    return {**config, head: with_value(config[head], rest, value) if rest else value}


def others(value: object) -> list[object]:
    """Return values that a setting might have instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [2 * value, value + 1, value // 2, 4 * value] if value else [1, 2]
    if isinstance(value, float):
        return [value / 2 + 0.125]
    if isinstance(value, str):
        return [each for each in ("gelu", "silu", "relu", "gated-gelu", "relu2", "none") if each != value]
    if value is None:
        return [1, 64, True, 0.5, "silu"]
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            kinds = ("full_attention", "sliding_attention", "linear_attention")
            return [each for kind in kinds if (each := [kind] * len(value)) != value]
        return [
            each for each in ([], value[:1] * len(value), value[-1:] * len(value), [0], [1]) if each != value
        ]
    return []


def see(kind: Any, config: Config, changed: str) -> Seen:
    """Build a model and take its view under the names of the model, of a file, and with or without the prefix."""
    model = meta.empty(kind, config)
    state = dict(model.state_dict())
    prefix = model.base_model_prefix + "."
    files: dict[str, dict[str, torch.Tensor]] = {"own": state}
    if not changed:
        files["bare"] = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        files["prefixed"] = {prefix + name: tensor for name, tensor in state.items()}
    saved = dict(revert_weight_conversion(model, dict(state)))
    if saved.keys() != state.keys():
        files["saved"] = saved
    views = {}
    for label, tensors in files.items():
        headers = {name: ("BF16", tuple(tensor.shape)) for name, tensor in tensors.items()}
        views[label] = (
            view_of(model, headers, writing=True),
            {name: shape for name, (_, shape) in headers.items()},
        )
    return Seen(changed, dict(flat(model.config.to_dict())), views)


def base_config(kind: Any) -> Config:
    """Return the default config of a class, with few layers and experts where the class can be made so."""
    whole = {**kind.config_class().to_dict(), "architectures": [kind.__name__]}
    small = whole
    for path, value in list(flat(whole)):
        few = FEW.get(path.rpartition(".")[2])
        if few is not None and type(value) is int and value > few:
            small = resized(small, path, few)
    for config in (small, whole):
        try:
            see(kind, config, "")
        except Exception:  # a class that cannot be made of few parts is made of its defaults
            continue
        return config
    raise ValueError("cannot be built from its defaults")


def probe(kind: Any, config: Config) -> Iterator[tuple[Seen, Config]]:
    """Yield what is seen with the base config, then with one setting after the other changed."""
    yield see(kind, config, ""), config
    numbers = [
        path for path, value in flat(config) if type(value) is int and value > 1 and not FREE.search(path)
    ]
    for path, value in list(flat(config)):
        if FREE.search(path):
            continue
        wanted = 2 if type(value) is int else 4
        # A size that others follow from is changed together with one of them.
        pairs = ((2 * value, other) for other in numbers if other != path and type(value) is int)
        given = itertools.chain(((other, "") for other in others(value)), pairs)
        for other, beside in given:
            if beside and wanted < 2:
                break
            try:
                changed = resized(config, path, other)
                if beside:
                    changed = resized(changed, beside, 2 * dict(flat(changed))[beside])
                found = see(kind, changed, path)
            except Exception:  # a value that the class does not take says nothing
                continue
            yield found, changed
            wanted -= 1
            if wanted == 0:
                break


def resized(config: Config, path: str, value: object) -> Config:
    """Return a config with one setting changed, and every list as long as it was, if that was its length."""
    before = dict(flat(config))[path]
    result = with_value(config, path, value)
    if type(before) is int and type(value) is int and before > 1:
        section = path.rpartition(".")[0]
        for other, items in flat(config):
            if other.rpartition(".")[0] == section and isinstance(items, list) and len(items) == before:
                result = with_value(result, other, (items * (value // before + 1))[:value])
    return result


def combined(kind: Any, config: Config, count: int) -> Iterator[tuple[Seen, Config]]:
    """Yield what is seen with several settings changed at once."""
    random = Random(kind.__name__)
    paths = [(path, value) for path, value in flat(config) if not FREE.search(path) and others(value)]
    for _ in range(count):
        changed, names = config, []
        for path, value in random.sample(paths, min(len(paths), random.randint(2, 5))):
            names.append(path)
            changed = resized(changed, path, random.choice(others(value)[:3]))
        try:
            yield see(kind, changed, "+".join(names)), changed
        except Exception:  # a value that the class does not take says nothing
            continue
