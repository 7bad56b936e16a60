"""What config.json says about a model: the only place that knows its sections and their keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_LANGUAGE: Final = ("text_config", "llm_config", "language_config")
"""Where models of several parts describe their language model."""


@dataclass(frozen=True)
class ModelFacts:
    """What config.json says about sizes that names do not tell.

    Attributes:
        model_type: as in config.json, that of the language model where there are several; of a component of a pipeline
            the name of its class; empty if unknown.
        heads: query heads, 0 if unknown.
        kv_heads: key and value heads.
        experts: routed experts of one layer, 0 if unknown or none.
        top_k: experts per token, 0 if unknown.
        layers: layers of the language model, 0 if unknown.
        hidden: features between its layers, 0 if unknown.
        limit: clamp of the gated activation of its experts, None if it has none or does not say.
    """

    model_type: str = ""
    heads: int = 0
    kv_heads: int = 0
    experts: int = 0
    top_k: int = 0
    layers: int = 0
    hidden: int = 0
    limit: float | None = None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> ModelFacts:
        """Read config.json, the section of the language model where there are several."""
        section = language(config)

        def number(*keys: str) -> int:
            found = (section.get(key) for key in keys)
            return next((value for value in found if type(value) is int and value > 0), 0)

        heads = number("num_attention_heads", "n_head")
        limit: Any = section.get("swiglu_limit")
        return cls(
            str(section.get("model_type") or config.get("model_type") or config.get("_class_name") or ""),
            heads,
            number("num_key_value_heads") or heads,
            number("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
            number("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k", "top_k_experts"),
            number("num_hidden_layers"),
            number("hidden_size"),
            float(limit) if _is_number(limit) and limit > 0 else None,
        )


def language(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section of config.json that describes the language model; the whole where there is one model only."""
    found = (config.get(key) for key in _LANGUAGE)
    return next((section for section in found if isinstance(section, dict)), config)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


__all__ = ["ModelFacts", "language"]
