"""The names of OpenAI's own gpt-oss files, in those of transformers.

Source: transformers 5.23, ``models/gpt_oss/convert_gpt_oss_weights_to_hf.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mxfp4_core.dialects.pairs import contradiction
from mxfp4_core.dialects.recipes import Recipe

_NAMES = (
    (r"block\.(\d+)\.attn\.norm\.scale", r"model.layers.\1.input_layernorm.weight"),
    (r"block\.(\d+)\.attn\.out\.(weight|bias)", r"model.layers.\1.self_attn.o_proj.\2"),
    (r"block\.(\d+)\.attn\.sinks", r"model.layers.\1.self_attn.sinks"),
    (r"block\.(\d+)\.mlp\.norm\.scale", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"block\.(\d+)\.mlp\.gate\.(weight|bias)", r"model.layers.\1.mlp.router.\2"),
    (r"block\.(\d+)\.mlp\.mlp1_weight", r"model.layers.\1.mlp.experts.gate_up_proj"),
    (r"block\.(\d+)\.mlp\.mlp2_weight", r"model.layers.\1.mlp.experts.down_proj"),
    (r"block\.(\d+)\.mlp\.mlp1_bias", r"model.layers.\1.mlp.experts.gate_up_proj_bias"),
    (r"block\.(\d+)\.mlp\.mlp2_bias", r"model.layers.\1.mlp.experts.down_proj_bias"),
    (r"embedding\.weight", r"model.embed_tokens.weight"),
    (r"norm\.scale", r"model.norm.weight"),
    (r"unembedding\.weight", r"lm_head.weight"),
)
_QKV = re.compile(r"block\.(\d+)\.attn\.qkv\.(weight|bias)")
_CONFIG = {"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}
_ROPE = {
    "rope_scaling_factor": "factor",
    "rope_ntk_beta": "beta_fast",
    "rope_ntk_alpha": "beta_slow",
    "initial_context_length": "original_max_position_embeddings",
}


def name_of(name: str) -> str:
    """Return transformers' name for one of OpenAI's.

    Raises:
        DialectError: a name that gpt-oss does not have.
    """
    for pattern, made in _NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(made)
    contradiction(
        "gpt-oss", f"tensor {name!r} in the original layout", "its names are those of OpenAI's files"
    )


def others_of(tensors: Mapping[str, Recipe], config: Mapping[str, Any]) -> dict[str, Recipe]:
    """Return what is not quantised under transformers' names; fused rows of q, k and v become three tensors.

    Raises:
        DialectError: a name that gpt-oss does not have, or head counts that the rows contradict.
    """
    found: dict[str, Recipe] = {}
    for name, recipe in tensors.items():
        if match := _QKV.fullmatch(name):
            layer, kind = match.groups()
            sizes = [config.get(key) for key in ("num_attention_heads", "num_key_value_heads", "head_dim")]
            heads, groups, width = (size if type(size) is int else 0 for size in sizes)
            rows = {"q": heads * width, "k": groups * width, "v": groups * width}
            if sum(rows.values()) != recipe.shape[0] or not groups:
                seen = f"{name!r} {list(recipe.shape)} with {heads} heads, {groups} groups of width {width}"
                contradiction("gpt-oss", seen, "its rows are those of all heads, of q, then k, then v")
            at = 0
            for part, count in rows.items():
                found[f"model.layers.{layer}.self_attn.{part}_proj.{kind}"] = recipe.take(at, at + count)
                at += count
        else:
            found[name_of(name)] = recipe
    return found


def config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return transformers' config.json for OpenAI's."""
    made: dict[str, Any] = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}
    rope = {new: config[old] for old, new in _ROPE.items() if old in config}
    for key, value in config.items():
        if key not in _ROPE and key != "rope_theta":
            made[_CONFIG.get(key, key)] = value
    if rope:
        made["rope_parameters"] = {
            "rope_type": "yarn",
            **({"rope_theta": config["rope_theta"]} if "rope_theta" in config else {}),
            **rope,
            "truncate": False,
        }
    return made


__all__ = ["config_of", "name_of", "others_of"]
