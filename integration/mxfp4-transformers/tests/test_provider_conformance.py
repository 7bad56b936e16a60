"""The provider of this package passes the suite that every model provider inherits."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from families import MODELS

from mxfp4_core.testing import ModelExample, ModelProviderConformance


def example(build: Callable[[], Any], kinds: dict[str, str], k_first: tuple[str, ...] = ()) -> ModelExample:
    """Describe a checkpoint as ``save_pretrained`` would write it, where that is what the model calls its weights."""
    with torch.device("meta"):
        model = build()
    config = {**json.loads(model.config.to_json_string()), "architectures": [type(model).__name__]}
    headers = {name: ("BF16", tuple(weight.shape)) for name, weight in model.named_parameters()}
    turned = {name for name, shape in headers.items() if len(shape[1]) > 1 and name.endswith(k_first)}
    return ModelExample(config, headers, kinds, frozenset(turned if k_first else ()))


LAYER = "model.layers.0."


EXAMPLES = {
    "llama": example(MODELS["llama"], {"lm_head.weight": "head", LAYER + "mlp.up_proj.weight": "linear"}),
    "qwen3": example(MODELS["qwen3"], {"model.embed_tokens.weight": "embedding"}),
    "gpt_oss": example(
        MODELS["gpt_oss"],
        {LAYER + "mlp.router.weight": "router", LAYER + "mlp.experts.down_proj": "experts"},
        ("experts.gate_up_proj", "experts.down_proj"),
    ),
    "gpt2": example(
        MODELS["gpt2"],
        {"transformer.wpe.weight": "embedding", "transformer.h.0.mlp.c_fc.weight": "linear"},
        ("c_attn.weight", "c_proj.weight", "c_fc.weight"),
    ),
    "t5": example(MODELS["t5"], {"shared.weight": "embedding", "lm_head.weight": "head"}),
}


class TestTransformers(ModelProviderConformance):
    provider_name = "transformers"
    examples = EXAMPLES
