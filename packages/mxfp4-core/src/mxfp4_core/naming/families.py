"""What differs by family of models, as one table: each row with the model types that it is about, and its source.

Names tell most of what a weight is. What they do not tell, and what somebody learned at a model's expense, is a row
here: which gated activation the experts have, whose weights are stored with K before N, and what others keep in high
precision beyond the defaults of ``kept.py``. `mxfp4 plan` shows that advice; only the user's config carries it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mxfp4_core.arithmetic.gate import GPT_OSS_SWIGLU, Gate
from mxfp4_core.config.patterns import PatternSet

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
        advised: patterns of what the source keeps in high precision, for ``ignore``.
        ends: the same of numbered blocks: what they are called, and how many the source keeps at each end.
        rewritten: ends of the names of modules whose weights the model changes while it runs, so that they stay.
    """

    types: frozenset[str]
    source: str
    gate: Gate | None = None
    k_first_experts: bool = False
    k_first_always: bool = False
    k_first_linears: frozenset[str] = frozenset()
    advised: tuple[str, ...] = ()
    ends: tuple[str, int] | None = None
    rewritten: tuple[str, ...] = ()


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
        source="SGLang 0.5.23 quark.py, default excludes of quark_mxfp4",
        advised=("self_attn", "model.layers.61"),
    ),
    Family(
        types=frozenset({"qwen3_5_moe", "qwen3_5_moe_text"}),
        source="SGLang 0.5.13 to 0.5.23 quark.py, default excludes of quark_mxfp4",
        advised=(
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
)
"""The table, in no order that matters: what several rows say about one model type adds up.

Vision towers have no row: SGLang 0.5.13 to 0.5.23 quantises their linears like all others.
"""


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


def advice(model_type: str, modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return what others keep in high precision of a model of this type: the source, and their patterns for ``ignore``.

    Args:
        model_type: as in config.json.
        modules: the weights that would be quantised; patterns that hit none of them are left out.
    """
    advised = [row for row in rows(model_type) if row.advised or row.ends]
    names = list(modules) if advised else []
    found = {}
    for row in advised:
        texts = (*row.advised, *_ends(row, names))
        patterns = PatternSet(texts)
        hit = {text for name in names for text in patterns.find(name)}
        if hit:
            found[row.source] = tuple(text for text in texts if text in hit)
    return found


def _ends(row: Family, names: Iterable[str]) -> list[str]:
    """Return patterns for the first and the last blocks; none where no block would be left between them."""
    if row.ends is None:
        return []
    blocks, count = row.ends
    matches = (re.search(rf"(?:^|\.){blocks}\.(\d{{1,6}})(?:\.|$)", name) for name in names)
    last = max((int(match[1]) for match in matches if match), default=-1)
    if last < 2 * count:
        return []
    return [f"{blocks}.{number}" for number in (*range(count), *range(last - count + 1, last + 1))]


__all__ = [
    "FAMILIES",
    "Family",
    "GatedActivation",
    "advice",
    "gate_of",
    "k_first_family",
    "rewritten",
    "rows",
]
