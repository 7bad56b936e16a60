"""The names of OpenAI's own gpt-oss files in those of transformers, and back.

Sources: transformers 5.23, ``models/gpt_oss/convert_gpt_oss_weights_to_hf.py``; openai/gpt-oss, ``ModelConfig``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from mxfp4_core.dialects.joins import concat
from mxfp4_core.dialects.pairs import contradiction
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.errors import DialectError

NAME: Final = "gpt-oss-original"

# OpenAI's name and that of transformers; # is the number of the layer, $ is weight or bias.
_NAMES: Final = (
    ("block.#.attn.norm.scale", "model.layers.#.input_layernorm.weight"),
    ("block.#.attn.out.$", "model.layers.#.self_attn.o_proj.$"),
    ("block.#.attn.sinks", "model.layers.#.self_attn.sinks"),
    ("block.#.mlp.norm.scale", "model.layers.#.post_attention_layernorm.weight"),
    ("block.#.mlp.gate.$", "model.layers.#.mlp.router.$"),
    ("block.#.mlp.mlp1_weight", "model.layers.#.mlp.experts.gate_up_proj"),
    ("block.#.mlp.mlp2_weight", "model.layers.#.mlp.experts.down_proj"),
    ("block.#.mlp.mlp1_bias", "model.layers.#.mlp.experts.gate_up_proj_bias"),
    ("block.#.mlp.mlp2_bias", "model.layers.#.mlp.experts.down_proj_bias"),
    ("embedding.weight", "model.embed_tokens.weight"),
    ("norm.scale", "model.norm.weight"),
    ("unembedding.weight", "lm_head.weight"),
)
_QKV = re.compile(r"block\.(\d+)\.attn\.qkv\.(weight|bias)")
_APART = re.compile(r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
_CONFIG = {"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}
_ROPE = {
    "rope_scaling_factor": "factor",
    "rope_ntk_beta": "beta_fast",
    "rope_ntk_alpha": "beta_slow",
    "initial_context_length": "original_max_position_embeddings",
}
_SAME: Final = (
    "num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "swiglu_limit", "head_dim",
    "num_attention_heads", "num_key_value_heads", "sliding_window",
)  # fmt: skip
"""Keys of OpenAI's config.json that transformers calls the same."""


def _table(source: int, target: int) -> tuple[tuple[re.Pattern[str], str], ...]:
    def pattern(name: str) -> re.Pattern[str]:
        return re.compile(re.escape(name).replace(r"\#", r"(\d+)").replace(r"\$", r"(weight|bias)"))

    def template(name: str) -> str:
        return name.replace("#", r"\1").replace("$", r"\2")

    return tuple((pattern(row[source]), template(row[target])) for row in _NAMES)


_FORTH, _BACK = _table(0, 1), _table(1, 0)


def name_of(name: str) -> str:
    """Return transformers' name for one of OpenAI's.

    Raises:
        DialectError: a name that gpt-oss does not have.
    """
    for pattern, made in _FORTH:
        if match := pattern.fullmatch(name):
            return match.expand(made)
    contradiction(NAME, f"tensor {name!r} in the original layout", "its names are those of OpenAI's files")


def original_of(name: str) -> str:
    """Return OpenAI's name for one of transformers.

    Raises:
        DialectError: a name that gpt-oss does not have.
    """
    for pattern, made in _BACK:
        if match := pattern.fullmatch(name):
            return match.expand(made)
    raise DialectError(
        f"tensor {name!r} cannot be written in the dialect {NAME}",
        seen="a name that OpenAI's files do not have",
        rule="that dialect stores the tensors of gpt-oss, and nothing else",
        fix="write the dialect gpt-oss or mxfp4-core",
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
            stored = recipe.shape[0] if recipe.shape else 0
            if sum(rows.values()) != stored or min(heads, groups, width) < 1:
                seen = f"{name!r} {list(recipe.shape)} with {heads} heads, {groups} groups of width {width}"
                contradiction(NAME, seen, "its rows are those of all heads, of q, then k, then v")
            at = 0
            for part, count in rows.items():
                found[f"model.layers.{layer}.self_attn.{part}_proj.{kind}"] = recipe.take(at, at + count)
                at += count
        else:
            found[name_of(name)] = recipe
    return found


def originals_of(tensors: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """Return what is not quantised under OpenAI's names; q, k and v become the rows of one tensor.

    Raises:
        DialectError: a name that gpt-oss does not have, or one of the three is missing.
    """
    found: dict[str, Recipe] = {}
    for name, recipe in tensors.items():
        if not (match := _APART.fullmatch(name)):
            found[original_of(name)] = recipe
            continue
        layer, _, kind = match.groups()
        fused = f"block.{layer}.attn.qkv.{kind}"
        if fused in found:
            continue
        wanted = [f"model.layers.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"]
        if missing := [each for each in wanted if each not in tensors]:
            raise DialectError(
                f"tensor {fused!r} cannot be written in the dialect {NAME}",
                seen=f"{name!r} without {missing[0]!r}",
                rule="OpenAI's files hold q, k and v as one tensor",
                fix="write the dialect gpt-oss, or get the whole checkpoint",
            )
        found[fused] = concat([tensors[each] for each in wanted])
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


def original_config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return OpenAI's config.json for that of transformers, as far as it has a word for it."""
    made = {key: config[key] for key in _SAME if key in config}
    made |= {old: config[new] for old, new in _CONFIG.items() if new in config}
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    rope = rope if isinstance(rope, dict) else {}
    made |= {old: rope[new] for old, new in _ROPE.items() if new in rope}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    return made if theta is None else {**made, "rope_theta": theta}


__all__ = ["NAME", "config_of", "name_of", "original_config_of", "original_of", "originals_of", "others_of"]
