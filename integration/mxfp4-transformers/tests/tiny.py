"""Tiny random models on disk, in every layout of weights that the adapter has to know.

``MXFP4_TEST_DEVICE=cuda`` runs the same tests on an accelerator; backend ``reference`` is named there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from mxfp4_core import quantize
from mxfp4_transformers import Mxfp4Config

DEVICE = os.environ.get("MXFP4_TEST_DEVICE", "cpu")

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    # biases everywhere
    "llama": lambda: LlamaConfig(**SIZES, intermediate_size=96, attention_bias=True, mlp_bias=True),
    # the output head shares its weight with the embedding
    "qwen3": lambda: Qwen3Config(**SIZES, intermediate_size=96, tie_word_embeddings=True),
    # experts apart on disk and stacked in the model, after a dense layer; scales of down_proj have one column
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **SIZES, **EXPERTS, intermediate_size=96, moe_intermediate_size=32, num_experts=6, mlp_only_layers=[0]
    ),
    # experts under other names on disk
    "mixtral": lambda: MixtralConfig(**SIZES, **EXPERTS, intermediate_size=96, num_local_experts=4),
    # stacked on disk, K before N, gate and up interleaved, biases, clamped activation
    "gpt_oss": lambda: GptOssConfig(
        **SIZES,
        **EXPERTS,
        intermediate_size=96,
        num_local_experts=4,
        sliding_window=16,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}
NAMES = list(CONFIGS)
PROMPT = torch.arange(3, 15)[None]


def settings(**given: Any) -> Mxfp4Config:
    """Return a config that works on the device of this run."""
    if DEVICE != "cpu":
        given.setdefault("backend", "reference")
    return Mxfp4Config(**given)


def load(path: Path, config: Any = None, **keywords: Any) -> Any:
    """Load onto the device of this run, quantising if a config is given."""
    if DEVICE != "cpu":
        keywords.setdefault("device_map", DEVICE)
    if config is not None:  # an explicit None would make transformers forget the one of the checkpoint
        keywords["quantization_config"] = config
    return AutoModelForCausalLM.from_pretrained(path, **keywords)


def reload(path: Path, kind: Any = AutoModelForCausalLM) -> Any:
    """Load a quantised checkpoint: on a CPU without any config, elsewhere naming the backend."""
    if DEVICE == "cpu":
        return kind.from_pretrained(path)
    with warnings.catch_warnings():
        # transformers warns about every config that comes with a quantised checkpoint.
        warnings.simplefilter("ignore", UserWarning)
        return kind.from_pretrained(path, quantization_config=settings(), device_map=DEVICE)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(PROMPT.to(model.device)).logits.cpu()


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a checkpoint."""
    return {
        name: tensor
        for file in sorted(path.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def widened_model(path: Path, names: list[str], *, k_first: bool = False, **rule: Any) -> Any:
    """Load in float32 without us, and give each weight in ``names`` the values that MXFP4 has for it."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    parameters = dict(model.named_parameters())
    for name in names:
        weight = parameters[name].data
        turn = k_first and weight.ndim == 3
        rows = weight.transpose(-1, -2) if turn else weight
        values = quantize(rows, tail="pad", **rule).dequantize(torch.float32)
        parameters[name].data = values.transpose(-1, -2).contiguous() if turn else values
    return model
