"""The names of GGUF and those of transformers, for the architectures that are known here, and what a file says of them.

Source: gguf 0.19, ``constants.py`` and ``tensor_mapping.py``; llama.cpp, ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mxfp4_core.dialects.gguf_rope import FACTORS, rope_config, rope_settings
from mxfp4_core.errors import DialectError

# The last parts of names below ``blk.N`` and ``model.layers.N``; what is said for one architecture replaces it.
_LAYER: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_TOP: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_GPT_OSS: Final = {"post_attention_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router"}
_KEYS: Final = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "attention.sliding_window": "sliding_window",
}
"""Settings by the key behind the name of the architecture, and the key of config.json."""


@dataclass(frozen=True)
class Architecture:
    """One architecture of GGUF.

    Attributes:
        name: in GGUF.
        model_type: in config.json.
        model: class of transformers.
        layer: names of the parts of a layer, GGUF's first.
        turned: whether rows of q and k stand in another order: both halves of each head in turn.
        stacked: whether experts are stacked in the file and single linears in the model.
        fused: whether gate and up of experts are one weight in the model, rows in turn.
    """

    name: str
    model_type: str
    model: str
    layer: Mapping[str, str]
    turned: bool = False
    stacked: bool = False
    fused: bool = False

    def hugging_face(self, name: str) -> str | None:
        """Return the name in transformers; None for one that is not known."""
        stem, _, end = name.rpartition(".")
        if stem in _TOP:
            return f"{_TOP[stem]}.{end}"
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        if match is None:
            return None
        if match[2] == "attn_sinks":
            return f"model.layers.{match[1]}.self_attn.sinks"
        found = self.layer.get(match[2])
        return f"model.layers.{match[1]}.{found}.{end}" if found else None

    def gguf(self, name: str) -> str:
        """Return the name in GGUF.

        Raises:
            DialectError: the architecture has no such tensor.
        """
        stem, _, end = name.rpartition(".")
        back = {value: key for key, value in _TOP.items()}
        if stem in back and end in ("weight", "bias"):
            return f"{back[stem]}.{end}"
        layers = {value: key for key, value in self.layer.items()}
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
        if match and match[2] in layers and end in ("weight", "bias"):
            return f"blk.{match[1]}.{layers[match[2]]}.{end}"
        if match and (match[2], end) == ("self_attn", "sinks"):
            return f"blk.{match[1]}.attn_sinks.weight"
        if name == FACTORS or re.fullmatch(r"blk\.\d+\.\w+\.(weight|bias)", name):
            return name  # as it was read, where it is no part of the model that is known here
        raise DialectError(
            f"tensor {name!r} cannot be written in the dialect gguf",
            seen="a name that GGUF does not have for it",
            rule=f"tensors of the architecture {self.name} are known by their names in transformers",
            fix="write another dialect, or convert the model in BF16 with llama.cpp and quantise it there",
        )

    def settings(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a file from config.json."""
        found: dict[str, Any] = {"general.architecture": self.name, "general.file_type": 38}
        found["general.quantization_version"] = 2
        for key, name in _KEYS.items():
            value = model.get(name)
            if type(value) is int or (type(value) is float and key.endswith("epsilon")):
                found[f"{self.name}.{key}"] = value
        experts = model.get("num_local_experts") or model.get("num_experts")
        if type(experts) is int:
            found[f"{self.name}.expert_count"] = experts
        if self.fused and type(width := model.get("intermediate_size")) is int:
            found[f"{self.name}.expert_feed_forward_length"] = width
        found |= rope_settings(self.name, model)
        return found

    def config(self, settings: Mapping[str, Any], factors: Sequence[float] = ()) -> dict[str, Any]:
        """Return config.json from the settings of a file, as far as they say it.

        Args:
            settings: of the file.
            factors: the values of its tensor of factors for positions; none where it has none.

        Raises:
            DialectError: positions that are scaled in a way for which no words are known here.
        """
        made: dict[str, Any] = {"architectures": [self.model], "model_type": self.model_type}
        for key, name in _KEYS.items():
            value = settings.get(f"{self.name}.{key}")
            if type(value) in (int, float):
                made[name] = value
        if type(theta := settings.get(f"{self.name}.rope.freq_base")) is float:
            made["rope_theta"] = theta
        if type(experts := settings.get(f"{self.name}.expert_count")) is int and experts:
            made["num_local_experts" if self.fused else "num_experts"] = experts
        made |= rope_config(self.name, settings, made, factors)
        if self.fused and "rope_scaling" in made:  # all models of this kind; ggml has no word for it
            made["rope_scaling"]["truncate"] = False
        return made


ARCHITECTURES: Final = {
    each.name: each
    for each in (
        Architecture("llama", "llama", "LlamaForCausalLM", _LAYER, turned=True),
        Architecture("qwen2", "qwen2", "Qwen2ForCausalLM", _LAYER),
        Architecture("qwen3", "qwen3", "Qwen3ForCausalLM", _LAYER),
        Architecture("qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM", _LAYER, stacked=True),
        Architecture(
            "gpt-oss",
            "gpt_oss",
            "GptOssForCausalLM",
            {**{key: value for key, value in _LAYER.items() if key != "ffn_norm"}, **_GPT_OSS},
            fused=True,
        ),
    )
}
"""By name."""


def architecture_for(model: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a model.

    Raises:
        DialectError: none that is known here.
    """
    found = model.get("model_type")
    for each in ARCHITECTURES.values():
        if each.model_type == found:
            return each
    known = ", ".join(each.model_type for each in ARCHITECTURES.values())
    raise DialectError(
        "these weights cannot be written in the dialect gguf",
        seen=f"model_type {found!r}",
        rule=f"names and settings of GGUF are known here for {known}",
        fix="write another dialect, or convert the model in BF16 with llama.cpp and quantise it there",
    )


__all__ = ["ARCHITECTURES", "Architecture", "architecture_for"]
