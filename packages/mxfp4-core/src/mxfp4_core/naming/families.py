"""What differs by family of models, as one table: each row with the model types that it is about, and its source.

Names tell most of what a weight is. What they do not tell, and what somebody learned at a model's expense, is a row
here: which gated activation the experts have, whose weights are stored with K before N, and what stays in high
precision beyond the defaults of ``kept.py``. What a row keeps is a default, which ``family_defaults`` switches
off; what it only advises is shown by `mxfp4 plan`, and the user's config carries it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mxfp4_core.arithmetic.gate import GPT_OSS_SWIGLU, Gate
from mxfp4_core.naming.facts import ModelFacts

GatedActivation = Gate
"""What this room calls it: see `mxfp4_core.backend.Gate`."""


@dataclass(frozen=True)
class Family:
    """One row: something that is true for some model types.

    Attributes:
        types: as in config.json, both of the whole model and of its language model.
        source: where it was read.
        gate: the gated activation of the experts.
        k_first_experts: checkpoints hold stacked experts as ``[E, K, N]``.
        k_first_always: they do so whoever saved them; otherwise only as released, and the sizes tell.
        k_first_linears: last components of the names of linears that checkpoints hold as ``[K, N]``.
        kept: patterns of what stays in high precision by default, as the source keeps it.
        advised: patterns of what the source keeps beyond that at a price that the user decides about, for ``ignore``.
        ends: the same of numbered blocks: what they are called, and how many the source keeps at each end.
        rewritten: ends of the names of modules whose weights the model changes while it runs, so that they stay.
        second: the format in which the source runs the second model of a pipeline that has two of this kind.
    """

    types: frozenset[str]
    source: str
    gate: Gate | None = None
    k_first_experts: bool = False
    k_first_always: bool = False
    k_first_linears: frozenset[str] = frozenset()
    kept: tuple[str, ...] = ()
    advised: tuple[str, ...] = ()
    ends: tuple[str, int] | None = None
    rewritten: tuple[str, ...] = ()
    second: str = ""


FAMILIES: Final[tuple[Family, ...]] = (
    Family(
        types=frozenset({"gpt_oss", "openai_privacy_filter"}),
        source="transformers 5.23, GptOssExperts: is_transposed, not is_concatenated, alpha and limit",
        gate=GPT_OSS_SWIGLU,
        k_first_experts=True,
        k_first_always=True,
    ),
    Family(
        types=frozenset({"aria", "aria_text", "llama4", "llama4_text", "qwen3_vl_moe", "qwen3_vl_moe_text"}),
        source="transformers 5.23: is_transposed experts, and Transpose in conversion_mapping.py",
        k_first_experts=True,
    ),
    Family(
        types=frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}),
        source="transformers 5.17 to 5.24, pytorch_utils.Conv1D",
        k_first_linears=frozenset({"c_attn", "c_proj", "c_fc", "q_attn"}),
    ),
    Family(
        types=frozenset({"clvp", "clvp_decoder"}),
        source="transformers 5.24, ClvpDecoderMLP: Conv1D; its attention has torch's own linears",
        k_first_linears=frozenset({"c_fc", "c_proj"}),
    ),
    Family(
        types=frozenset({"rwkv"}),
        source="transformers 5.24, RwkvModel._rescale_layers divides them in place where config.rescale_every is set",
        rewritten=("attention.output", "feed_forward.value"),
    ),
    Family(
        types=frozenset({"deepseek_v4"}),
        source="DeepSeek-V4 config.json, swiglu_limit; SGLang 0.5.23 fused_marlin_moe.py",
        gate=Gate(limit=10.0),
    ),
    Family(
        types=frozenset({"diffusion_gemma", "diffusion_gemma_text", "gemma4", "gemma4_text"}),
        source="transformers 5.24, Gemma4TextExperts: hidden_activation is gelu_pytorch_tanh",
        gate=Gate(function="gelu_tanh"),
    ),
    Family(
        types=frozenset({"deepseek_v3", "deepseek_v32", "deepseek_v4"}),
        # Its `model.layers.61` is the draft layer of a model of 61, which the defaults keep by the depth. V4's own
        # names say `attn`.
        source="SGLang 0.5.23 quark.py, default excludes of quark_mxfp4",
        kept=("self_attn", "attn"),
    ),
    Family(
        types=frozenset({"qwen3_5_moe", "qwen3_5_moe_text"}),
        source="SGLang 0.5.13 to 0.5.23 quark.py, default excludes of quark_mxfp4",
        kept=(
            "in_proj_a",
            "in_proj_b",
            "in_proj_qkv",
            "in_proj_z",
            "o_proj",
            "out_proj",
            "qkv_proj",
            "shared_expert",
        ),
    ),
    Family(
        types=frozenset({"QwenImageTransformer2DModel"}),
        source="NVIDIA Model-Optimizer, pull request 1706; recipes for FP4 keep the modulation as well",
        advised=("img_mod", "txt_mod"),
        ends=("transformer_blocks", 2),
    ),
    Family(
        types=frozenset(
            {
                "WanTransformer3DModel",
                "WanVACETransformer3DModel",
                "WanAnimateTransformer3DModel",
                "WanAnimate2Transformer3DModel",
            }
        ),
        source="recipes for Wan2.1 in FP4: the first and the last ten blocks",
        ends=("blocks", 10),
    ),
    Family(
        types=frozenset({"WanTransformer3DModel"}),
        source="xDiT, pull request 646, for Wan2.2: its second transformer in FP8",
        second="mxfp8",
    ),
)
"""The table, in no order that matters: what several rows say about one model type adds up."""

TOWERS: Final = (
    "SGLang 0.5.23 builds towers without quantisation: qwen3_vl.py (also for qwen3_5.py), kimi_k25.py, deepseek_v4.py, "
    "internvl.py, minimax_m3_vl.py, step3p7.py, qwen2_audio.py and others"
)
"""The row about towers, which holds for each model that `has_towers`: its source. See ``towers.py`` for the names."""


def rows(model_type: str) -> Iterator[Family]:
    """Yield the rows about a model type."""
    return (row for row in FAMILIES if model_type in row.types)


def gate_of(model_type: str) -> Gate | None:
    """Return the gated activation of a model type's experts, or None where it is plain SiLU as far as we know."""
    return next((row.gate for row in rows(model_type) if row.gate is not None), None)


def k_first_family(module_last: str, model_type: str, *, stacked: bool) -> Family | None:
    """Return the row by which checkpoints of a model type hold a weight with K before N, or None.

    Args:
        module_last: last component of the name, without ``.weight``.
        model_type: as in config.json.
        stacked: whether it is a stack of experts.
    """
    for row in rows(model_type):
        if module_last in row.k_first_linears or (stacked and row.k_first_experts):
            return row
    return None


def rewritten(model_type: str, module: str) -> bool:
    """Say whether a model changes the weight of a module while it runs.

    Args:
        model_type: as in config.json.
        module: its name.
    """
    return any(f".{module}".endswith(f".{end}") for row in rows(model_type) for end in row.rewritten)


def kept_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what stays in high precision of a model by the rows about it: patterns, each with its source.

    Args:
        config: contents of config.json; may be empty.
    """
    types = dict.fromkeys([ModelFacts.read(config).model_type, str(config.get("model_type") or "")])
    return {text: row.source for kind in types for row in rows(kind) for text in row.kept}


__all__ = [
    "FAMILIES",
    "TOWERS",
    "Family",
    "GatedActivation",
    "gate_of",
    "k_first_family",
    "kept_of",
    "rewritten",
    "rows",
]
