"""The models that the benchmarks of engines serve: sizes, names of tensors, and what they weigh."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Shapes = dict[str, tuple[int, ...]]
SHARED: dict[str, Any] = {
    "vocab_size": 151936,
    "num_attention_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {
        **SHARED,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
    },
    "moe": {
        **SHARED,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
    },
}
"""Qwen3-8B, 8.2 billion parameters; and 26 of 48 layers of Qwen3-30B-A3B, 16.9 billion."""


@dataclass(frozen=True)
class Written:
    """A model on disk.

    Attributes:
        name: its key in `MODELS`.
        layers: how many.
        source: folder in BF16.
        stored: folder of the dialect compressed-tensors with the same weights in MXFP4.
        parameters: how many.
        quantised: bytes of the model in MXFP4, with what stays in BF16.
        layer: bytes in BF16 of what is quantised in one layer.
    """

    name: str
    layers: int
    source: Path
    stored: Path
    parameters: int
    quantised: int
    layer: int

    @property
    def limit(self) -> float:
        """Most bytes on the device while it is loaded into MXFP4: the model and 5 % of it, and one layer in BF16."""
        return 1.05 * self.quantised + self.layer


def is_quantised(name: str) -> bool:
    """Say whether a tensor becomes MXFP4: linears, but neither routers nor what is around the layers."""
    return name.endswith("_proj.weight")


def shapes_of(config: dict[str, Any]) -> list[Shapes]:
    """Return the tensors of a model: those around the layers, and then each layer."""
    hidden, size = config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    ends: Shapes = {
        f"{name}.weight": (config["vocab_size"], hidden) for name in ("model.embed_tokens", "lm_head")
    }
    found = [{**ends, "model.norm.weight": (hidden,)}]
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}."
        one: Shapes = {f"{stem}self_attn.{name}_proj.weight": (kv, hidden) for name in "kv"}
        one |= {f"{stem}self_attn.q_proj.weight": (q, hidden), f"{stem}self_attn.o_proj.weight": (hidden, q)}
        one |= {f"{stem}self_attn.{name}_norm.weight": (size,) for name in "qk"}
        one |= {f"{stem}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        mlps, inner = [f"{stem}mlp."], config["intermediate_size"]
        if experts := config.get("num_experts"):
            one[f"{stem}mlp.gate.weight"] = (experts, hidden)
            mlps, inner = (
                [f"{stem}mlp.experts.{each}." for each in range(experts)],
                config["moe_intermediate_size"],
            )
        for mlp in mlps:
            one |= {f"{mlp}{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
            one[f"{mlp}down_proj.weight"] = (hidden, inner)
        found.append(one)
    return found


def written(name: str, layers: int, folder: Path) -> Written:
    """Say where a model is or will be, and what it weighs.

    Args:
        name: one of `MODELS`.
        layers: how many; all if 0.
        folder: for the folders of the model.
    """
    config = config_of(name, layers)
    sizes = [{key: torch.Size(shape).numel() for key, shape in one.items()} for one in shapes_of(config)]
    small = sum(size for one in sizes for key, size in one.items() if is_quantised(key))
    total = sum(size for one in sizes for size in one.values())
    layer = 2 * sum(size for key, size in sizes[-1].items() if is_quantised(key))
    count = config["num_hidden_layers"]
    source, stored = folder / f"{name}-{count}", folder / f"{name}-{count}-mxfp4"
    return Written(name, count, source, stored, total, 2 * (total - small) + small * 17 // 32, layer)


def config_of(name: str, layers: int) -> dict[str, Any]:
    """Return config.json of a model with so many layers; all if 0."""
    return {**MODELS[name], "num_hidden_layers": layers or MODELS[name]["num_hidden_layers"]}
