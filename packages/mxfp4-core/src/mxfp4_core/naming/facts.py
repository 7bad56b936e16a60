"""What config.json says about a model, for those who decide by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelFacts:
    """What config.json says about sizes that names do not tell.

    Attributes:
        model_type: as in config.json; empty if unknown.
        heads: query heads, 0 if unknown.
        kv_heads: key and value heads.
        experts: routed experts of one layer, 0 if unknown or none.
        top_k: experts per token, 0 if unknown.
    """

    model_type: str = ""
    heads: int = 0
    kv_heads: int = 0
    experts: int = 0
    top_k: int = 0

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> ModelFacts:
        """Read config.json, the section of the language model where there are several."""
        text = config.get("text_config")
        section: Mapping[str, Any] = text if isinstance(text, dict) else config

        def number(*keys: str) -> int:
            found = (section.get(key) for key in keys)
            return next((value for value in found if type(value) is int and value > 0), 0)

        heads = number("num_attention_heads", "n_head")
        return cls(
            str(section.get("model_type") or config.get("model_type") or ""),
            heads,
            number("num_key_value_heads") or heads,
            number("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
            number("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k"),
        )


__all__ = ["ModelFacts"]
