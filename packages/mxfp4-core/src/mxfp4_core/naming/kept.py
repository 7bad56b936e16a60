"""What stays in high precision by default, and what can never be MXFP4, each with the reason in words."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Final

from mxfp4_core._text import is_index
from mxfp4_core.naming.vocabulary import module_of, parse_expert

_NOT_A_WEIGHT: Final = re.compile(
    r"bias|.*_bias|.*_bias_\w+|.*_scale|.*_scale_inv|.*_scales|.*_scale_2|.*_zero_point|.*_global_scale"
    r"|A_log|D|sinks|.*inv_freq|.*_table|(cls|mask|dist)_token|lora_[AB]|gamma|beta|running_mean|running_var"
    r"|num_batches_tracked|logit_scale|layer_scalar|.*_gating_factor"
)
_CONVOLUTION: Final = re.compile(r"conv|conv[123]d|conv\d+|.*_conv|.*_conv[123]d|conv_in|conv_out")
# `decoder` as the module that holds a weight is BERT's: cls.predictions.decoder; `output_layer` is ChatGLM's.
_HEADS: Final = re.compile(r"embed_out|unembed(ding)?|score|classifier|decoder|output_layer|.*_heads?")
_AROUND: Final = frozenset({"model", "transformer", "language_model", "encoder", "decoder"})
"""What a model calls the whole that holds its layers; what lies beside the layers is read by it, not by one of them."""
_EMBEDDING: Final = re.compile(r"wte|wpe|relative_attention_bias|(.*_)?embed(s|der|ding|dings)?(_.*)?")
_TABLE: Final = re.compile(r"(.*_)?embs?|(.*_)?codebooks?")
_ROUTERS: Final = re.compile(r"(.*_)?router|gate|shared_expert_gate")
_NORM: Final = re.compile(r".*norm.*|ln_\w+|ln\d*", re.IGNORECASE)
_NUMBER: Final = re.compile(r"(?<=\.)[0-9]{1,6}(?=\.)")
_DRAFT: Final = re.compile(r"mtp|mtp_\w+|nextn|nextn_\w+")


def kept_by_nature(name: str, shape: Sequence[int] | None) -> str | None:
    """Return why a tensor cannot be MXFP4 whatever the config says, or None where it can.

    Args:
        name: tensor or module name.
        shape: its shape where known; without one only the name is judged.
    """
    module = module_of(name)
    last = module.rsplit(".", 1)[-1]
    if module == name and _NOT_A_WEIGHT.fullmatch(last):
        return f"{last!r} is not the weight of a linear layer"
    if _CONVOLUTION.fullmatch(last):
        return f"{last!r} is a convolution"
    if shape is None:
        return None
    if 0 in shape:
        return "an empty tensor has nothing to quantise"
    if len(shape) < 2:
        return "a vector has no rows to quantise" if shape else "a single number has no rows to quantise"
    if len(shape) == 3 and (expert := parse_expert(module)) is not None and expert.index is None:
        return None
    if len(shape) > 2:
        return f"a tensor with {len(shape)} axes outside 'experts' is not the weight of a linear layer"
    return None


def kept_by_default(module: str, layers: int | None = None, *, known: bool = False) -> str | None:
    """Return why the defaults keep a name in high precision, or None where they do not.

    Args:
        module: checkpoint name without ``.weight``.
        layers: ``num_hidden_layers`` of config.json; layers from there on are draft layers.
        known: a model's library says that this is the weight of a linear layer. Then inside of numbered layers only
            what comes behind their number is told by its name: ``roberta_prelayernorm`` is no norm, nor is ``v_head``
            of an attention an output head.
    """
    # Of the many layers and experts of a model, all but the number is judged once.
    reason = _by_words(_NUMBER.sub("0", module), known) or _behind(module, layers)
    return f"{reason}, kept by default" if reason else None


@functools.lru_cache(maxsize=1 << 12)
def _by_words(module: str, known: bool) -> str | None:
    parts = module.split(".")
    numbered = [index for index, part in enumerate(parts[:-1]) if part.isdecimal()] if known else []
    inner = parts[numbered[-1] + 1 :] if numbered else parts
    # `norm1.linear` belongs to a normalisation; what lies deeper (DBRX: `norm_attn_norm.attn.Wqkv`) does not.
    checks = [(_router, parts), (_embedding, inner), (_norm, inner[-2:] if known else inner)]
    if not numbered:
        checks.insert(1, (_head, parts))
    reason = next((reason for found, told in checks if (reason := found(told))), None)
    return reason or _first(parts, _DRAFT.fullmatch, "a draft (multi-token prediction) layer")


def _head(parts: list[str]) -> str | None:
    named = [part for part in parts if not is_index(part)] or parts  # one of several: lm_heads.0
    if _HEADS.fullmatch(named[-1]):
        return f"{named[-1]!r} is an output head"
    # DeepSeek's original names call it `head`, and its draft layers carry one of their own; Meta's call it `output`.
    if parts == ["head"] or parts[-2:] == ["shared_head", "head"] or _beside_layers(parts, "output"):
        return f"{parts[-1]!r} is an output head"
    return None


def _beside_layers(parts: list[str], name: str) -> bool:
    return parts[-1] == name and set(parts[:-1]) <= _AROUND


def _embedding(parts: list[str]) -> str | None:
    if reason := _first(parts, _EMBEDDING.fullmatch, "an embedding"):
        return reason
    named = [part for part in parts if not is_index(part)] or parts
    # T5 calls the table that its encoder and decoder share `shared`.
    if _TABLE.fullmatch(named[-1]) or _beside_layers(parts, "shared"):
        return f"{named[-1]!r} is an embedding or a table of codes"
    return None


def _router(parts: list[str]) -> str | None:
    # `gate` counts only as the module that holds the weight: `gate_proj` is a projection.
    if _ROUTERS.fullmatch(parts[-1]):
        return f"{parts[-1]!r} is a router or gate"
    if "router" in parts:
        return "'router' holds a router"
    return "'gate.wg' is a router" if parts[-2:] == ["gate", "wg"] else None


def _norm(parts: list[str]) -> str | None:
    return _first(parts, _NORM.fullmatch, "a normalisation")


def _behind(module: str, layers: int | None) -> str | None:
    parts = module.split(".")
    if layers is None or "layers" not in parts[:-1]:
        return None
    # Only the language model's own layers are counted: a vision tower has its own depth.
    at = parts.index("layers")
    number = parts[at + 1]
    if not set(parts[:at]) <= {"model", "language_model"} or not is_index(number) or int(number) < layers:
        return None
    return (
        f"layer {number} comes after the {layers} layers of the model: a draft (multi-token prediction) layer"
    )


def _first(parts: list[str], test: Callable[[str], object], words: str) -> str | None:
    found = next((part for part in parts if test(part)), None)
    if found is None:
        return None
    return f"{found!r} is {words}" if found == parts[-1] else f"inside {found!r}, {words}"


__all__ = ["kept_by_default", "kept_by_nature"]
