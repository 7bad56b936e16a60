"""Small configurations: what a name means is told by rules, and equal widths stay equal.

A configuration has relations that no field states: the projector ends at the width of the language model, a head has
its share of the hidden size. So widths are not chosen field by field. All values of the whole configuration that are
widths are put in order, and each is replaced by a small one, in the same order; what was equal is equal then, too.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any, Final

from architectures.layers import shorten

HIDDEN: Final = 128
"""Width of the language model."""
VOCAB: Final = 352
"""Size of every vocabulary; no width has it, so that what has as many rows is a head or an embedding."""

_SMALLER, _LARGER = (32, 64, 96), (192, 256, 320, 384, 448, 512, 576, 640, 704, 768)
_IMAGE, _PATCH = 32, 8

_FIXED: Final[tuple[tuple[str, Any], ...]] = (
    # (names as an expression, value or what makes it from the old one); the first that fits counts
    (r".*(vocab_size|vocab_size_\w+|num_embeddings)", lambda value: min(value, VOCAB)),
    (r"codebook_size", 256),
    (r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_sequence_length)", 128),
    (
        r"(max_source_positions|max_target_positions|max_\w*positions?|max_\w*position_embeddings|model_max_length)",
        128,
    ),
    (r"original_max_position_embeddings", 64),
    (r"rotary_dim", 16),
    (r"(attention_window|sliding_window|sliding_window_size|attention_window_size|local_attention)", 16),
    (r"(mamba_|n_)?chunk_size|attention_chunk_size", 16),
    (r"(mamba_num_heads|mamba_n_heads)", 8),
    (r"(.*_)?(num_attention_heads|n_heads?|num_heads|attention_heads)", lambda value: min(value, 4)),
    (r"(.*_)?(num_key_value_heads|n_kv_heads|kv_n_heads|num_kv_heads|num_query_groups)", lambda value: value),
    (r"(linear|gdn)_num_key_heads", 2),
    (r"(linear|gdn)_num_(value_)?heads|linear_num_heads", 4),
    (r"linear_(key_|value_)?head_dim", 32),
    (r"(mamba_head_dim|mamba_d_head|mamba_headdim)", 32),
    (r"(n_groups|mamba_n_groups|mamba_ngroups)", lambda value: min(value, 2)),
    (r"(state_size|ssm_state_size|mamba_d_state)", 16),
    (r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts)", 4),
    (
        r"(num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k|top_k_experts|num_selected_experts)",
        lambda v: min(v, 2),
    ),
    (r"(n_group|num_expert_group)", lambda value: min(value, 2)),
    (r"topk_group", 1),
    (r"(first_k_dense_replace|num_dense_layers|moe_layer_start_index)", lambda value: min(value, 1)),
    (r"(decoder_sparse_step|interleave_moe_layer_step|moe_layer_freq)", 1),
    (r"qk_rope_head_dim|qk_nope_head_dim|v_head_dim", lambda value: min(value, 32)),
    (r"qk_head_dim", lambda value: 64),
    (r"q_lora_rank", 64),
    (r"(kv_lora_rank|o_lora_rank)", 32),
    (r"d_kv", 32),
    (r"index_head_dim", 32),
    (r"index_n_heads", 2),
    (r"index_topk", 8),
    (r"(image_size|img_size|crop_size|resolution)", _IMAGE),
    (r"(patch_size|spatial_patch_size)", lambda value: min(value, _PATCH)),
    (r"num_position_embeddings", (_IMAGE // _PATCH) ** 2),
    (r"num_mel_bins", 32),
    (r"classifier_proj_size", 64),
)

_NO_WIDTH: Final = re.compile(
    r"(.*_)?(token|tokens|position|positions|max|length|len|chunk|window|rate|seq|topk|top|buckets|distance|period"
    r"|theta|seed|step|steps|frame|frames|ids?|offset|stride|strides|kernel|kernels|image|img|factor|scale|time|mask"
    r"|num|n|index|layer|layers|bins|samples|depth|depths|count|groups|floor|temperature|threshold|compress|capacity"
    r"|negatives|radius|resolution|stack|hash|ngram|pad|scalar|divisor|multiple|labels|min|tile|tiles|height|width"
    r"|minimum|maximum|context|grid|ratio|ratios|windows|merge|per|patch|sampling|hop|points|heads|version|cycles)(_.*)?"
)
_WIDTH_ANYWAY: Final = frozenset(
    {
        "lru_width",
        "hidden_size_per_layer_input",
        "image_token_embed_dim",
        "n_embd",
        "n_inner",
        "image_text_hidden_size",
        "patch_embed_hidden_size",
        "image_hidden_size",
        "num_channels_latents",
    }
)
_LEAST_WIDTH = 32
_MAIN: Final = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "hidden_dim", "emb_dim")
_MAIN_LISTS: Final = ("hidden_sizes", "embed_dims", "embed_dim")


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """Return a small copy of a configuration.

    Args:
        config: ``to_dict()`` of one with its defaults.
    """
    small = copy.deepcopy(config)
    widths = _widths(small)
    for section in _sections(small):
        turned = section.get("head_dim") is not None and section["head_dim"] == section.get(
            "qk_rope_head_dim"
        )
        _heads(section)
        shorten(section)
        for name in ("stage_names", "out_features", "out_indices"):
            section.pop(name, None)
        for key, value in section.items():
            section[key] = _replaced(key, value, widths)
        _fit_heads(section)
        if turned:  # DeepSeek: what the rotary embedding turns is a part of a head
            section["head_dim"] = section["qk_rope_head_dim"]
        _rotary(section)
    _tokens(small)
    return small


def _sections(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and (key.endswith("config") or "model_type" in value):
            yield from _sections(value)


def _widths(config: dict[str, Any]) -> dict[int, int]:
    """Return the small width for each width of a configuration; that of the language model is in the middle."""
    text = next(
        (
            section
            for key in ("text_config", "decoder", "llm_config")
            if isinstance(section := config.get(key), dict)
        ),
        config,
    )
    main = next((text[name] for name in _MAIN if type(text.get(name)) is int), 0)
    main = main or next(
        (text[name][0] for name in _MAIN_LISTS if isinstance(text.get(name), (list, tuple))), 0
    )
    found = {
        number
        for section in _sections(config)
        for key, value in section.items()
        for number in _width(key, value)
    }
    smaller = sorted(number for number in found if number < main)
    larger = sorted(number for number in found if number > main)
    low = {
        number: _SMALLER[max(0, index - len(smaller) + len(_SMALLER))] for index, number in enumerate(smaller)
    }
    high = {number: _LARGER[min(index, len(_LARGER) - 1)] for index, number in enumerate(larger)}
    return {main: HIDDEN, **low, **high}


def _width(key: str, value: Any) -> Iterator[int]:
    if _rule(key) is not None or (_NO_WIDTH.fullmatch(key) and key not in _WIDTH_ANYWAY):
        return
    for each in value if isinstance(value, (list, tuple)) else (value,):
        if type(each) is int and each >= _LEAST_WIDTH:
            yield each


def _rule(key: str) -> Any:
    return next((made for pattern, made in _FIXED if re.fullmatch(pattern, key)), None)


def _replaced(key: str, value: Any, widths: dict[int, int]) -> Any:
    if key == "head_dim":
        return value
    made = _rule(key)
    if made is not None:
        return _each(value, lambda number: made(number) if callable(made) else made) if value else value
    if list(_width(key, value)):
        return _each(value, lambda number: widths.get(number, number))
    return value


def _each(value: Any, make: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_each(each, make) for each in value]
    return make(value) if type(value) is int else value


def _heads(section: dict[str, Any]) -> None:
    """Keep whether heads are grouped."""
    for heads, groups in (("num_attention_heads", "num_key_value_heads"), ("n_head", "n_head_kv")):
        h, kv = section.get(heads), section.get(groups)
        if type(h) is int and type(kv) is int:
            section[groups] = 1 if kv == 1 else min(4, h) if kv >= h else min(2, kv)


def _fit_heads(section: dict[str, Any]) -> None:
    """Keep whether heads have an equal share of the hidden size, where it is said twice."""
    heads, hidden = section.get("num_attention_heads"), section.get("hidden_size")
    if type(section.get("head_dim")) is int and section["head_dim"] > 32:
        section["head_dim"] = 64
    if type(heads) is int and type(hidden) is int and hidden % heads:
        section["num_attention_heads"] = 4


def _rotary(section: dict[str, Any]) -> None:
    """Fit the sections of a rotary embedding of several axes to the size of a head."""
    heads, hidden = section.get("num_attention_heads") or 1, section.get("hidden_size") or 0
    size = section.get("head_dim") or (hidden // heads if type(heads) is int and type(hidden) is int else 0)
    for key in ("rope_parameters", "rope_scaling"):
        told = section.get(key)
        if isinstance(told, dict) and isinstance(told.get("mrope_section"), list):
            half = (
                int(size * told.get("partial_rotary_factor", section.get("partial_rotary_factor") or 1)) // 2
            )
            axes = len(told["mrope_section"])
            rest = half // axes // 2 * 2
            told["mrope_section"] = [half - rest * (axes - 1)] + [rest] * (axes - 1)


def _tokens(config: dict[str, Any]) -> None:
    """Give every special token that lies beyond the vocabulary a place of its own at the end of it."""
    places: dict[int, int] = {}
    for section in _sections(config):
        for key, value in section.items():
            if re.search(r"token_(id|index|ids)$|_token$|_(id|ids|index)$", key) and "layer" not in key:
                section[key] = _each(value, lambda token: _place(token, places))


def _place(token: int, places: dict[int, int]) -> int:
    if token < VOCAB - 64:
        return token
    return places.setdefault(token, VOCAB - 1 - len(places) % 64)


__all__ = ["HIDDEN", "VOCAB", "shrunk"]
