"""Weights of GGUF as models have them, and back: experts stacked, gate and up apart, rows of q and k turned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mxfp4_core.dialects.base import Entry
from mxfp4_core.dialects.gguf_blocks import parts_of
from mxfp4_core.dialects.gguf_names import Architecture
from mxfp4_core.dialects.joins import interleave, stack
from mxfp4_core.dialects.pairs import contradiction
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.errors import DialectError

_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.(weight|bias)")
ATTENTION = re.compile(
    r"(?:model\.layers|blk)\.\d+\.(?:self_attn\.)?(?:attn_)?([qk])(?:_proj)?\.(weight|bias)"
)


def entry_of(
    name: str, parts: Mapping[str, Recipe], *, transposed: bool = False, fused: bool = False
) -> Entry:
    """Return the entry of a weight with these parts."""
    codes = parts["codes"]
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    return Entry(name, shape, parts, transposed=transposed, interleaved=fused)


def unstacked(
    known: Architecture, name: str, parts: Mapping[str, Recipe], blocks: Mapping[str, Recipe]
) -> list[Entry]:
    """Return the weights of the model that a tensor of the file holds."""
    match = _EXPERTS.fullmatch(name)
    if match is None or match[3] != "weight":
        return [entry_of(known.hugging_face(name) or name, parts)]
    prefix = f"model.layers.{match[1]}.mlp.experts"
    if known.stacked:
        return [
            entry_of(
                f"{prefix}.{expert}.{match[2]}_proj.weight",
                {key: part.take(expert, expert + 1).reshape(*part.shape[1:]) for key, part in parts.items()},
            )
            for expert in range(parts["codes"].shape[0])
        ]
    if not known.fused:
        return [entry_of(name, parts)]
    if match[2] == "down":
        return [entry_of(f"{prefix}.down_proj", parts, transposed=True)]
    if match[2] == "up":
        if name.replace("_up_", "_gate_") not in blocks:
            contradiction("gguf", f"{name!r} without its gate", "experts have gate and up of one type")
        return []
    up = name.replace("_gate_", "_up_")
    if up not in blocks or blocks[up].shape != blocks[name].shape:
        contradiction(
            "gguf", f"{name!r} without its up of the same shape", "experts have gate and up of one type"
        )
    other = parts_of(blocks[up])
    both = {key: interleave([part, other[key]], 1) for key, part in parts.items()}
    return [entry_of(f"{prefix}.gate_up_proj", both, transposed=True, fused=True)]


def others_of(
    known: Architecture, name: str, recipe: Recipe, rest: Mapping[str, Recipe]
) -> list[tuple[str, Recipe]]:
    """Return what is not quantised under the names of the model."""
    match = _EXPERTS.fullmatch(name)
    if match is None or match[3] != "bias" or not known.fused:
        return [(known.hugging_face(name) or name, recipe)]
    prefix = f"model.layers.{match[1]}.mlp.experts"
    if match[2] == "down":
        return [(f"{prefix}.down_proj_bias", recipe)]
    gate, up = (name.replace(f"_{match[2]}_", f"_{part}_") for part in ("gate", "up"))
    if gate not in rest or up not in rest or rest[gate].shape != rest[up].shape or len(recipe.shape) != 2:
        contradiction("gguf", f"{name!r} alone", "biases of gate and up have one shape [E, I]")
    both = interleave([rest[gate], rest[up]], 1)
    return [(f"{prefix}.gate_up_proj_bias", both)] if match[2] == "gate" else []


def apart(entry: Entry, layer: str, part: str) -> list[Entry]:
    """Return gate and up of fused experts, or down."""
    if part == "down":
        return [replace(entry, weight=f"blk.{layer}.ffn_down_exps.weight", transposed=False)]
    experts, n, k = entry.shape
    return [
        replace(
            entry,
            weight=f"blk.{layer}.ffn_{name}_exps.weight",
            shape=(experts, n // 2, k),
            parts={key: recipe.take(first, step=2, axis=1) for key, recipe in entry.parts.items()},
            transposed=False,
            interleaved=False,
        )
        for first, name in enumerate(("gate", "up"))
    ]


def stacked(name: str, experts: Mapping[int, Entry]) -> Entry:
    """Stack experts that the model holds one by one."""
    first = experts[min(experts)]
    if sorted(experts) != list(range(len(experts))) or any(e.shape != first.shape for e in experts.values()):
        raise DialectError(
            f"tensor {name!r} cannot be written in the dialect gguf",
            seen=f"{len(experts)} experts up to number {max(experts)}, of shapes "
            f"{sorted({e.shape for e in experts.values()})[:3]}",
            rule="experts of a layer are all quantised, and have one shape",
            fix="quantise all experts of a layer, or none",
        )
    parts = {
        key: stack([experts[number].parts[key] for number in range(len(experts))]) for key in first.parts
    }
    return replace(first, weight=name, shape=(len(experts), *first.shape), parts=parts)


def turned(known: Architecture, entry: Entry, model: Mapping[str, Any], *, back: bool) -> Entry:
    """Bring the rows of a weight of q or k into ggml's order, or back; others stay."""
    parts = {
        key: turned_rows(known, entry.weight, part, model, back=back) for key, part in entry.parts.items()
    }
    return replace(entry, parts=parts)


def turned_rows(
    known: Architecture, name: str, recipe: Recipe, model: Mapping[str, Any], *, back: bool
) -> Recipe:
    """Bring rows of q and k from both halves of each head one after the other to both in turn, or back."""
    match = ATTENTION.fullmatch(name)
    if not (known.turned and match and recipe.shape):
        return recipe
    heads = model.get("num_attention_heads")
    if match[1] == "k":
        heads = model.get("num_key_value_heads") or heads
    rows, rest = recipe.shape[0], recipe.shape[1:]
    if type(heads) is not int or heads < 1 or rows % (2 * heads):
        contradiction(
            "gguf", f"{name!r} with {rows} rows and {heads!r} heads", "its rows are those of all heads"
        )
    sizes = (heads, rows // heads // 2, 2) if back else (heads, 2, rows // heads // 2)
    axes = (0, 2, 1, *range(3, 3 + len(rest)))
    return recipe.reshape(*sizes, *rest).permute(*axes).reshape(rows, *rest)


__all__ = ["ATTENTION", "apart", "entry_of", "others_of", "stacked", "turned", "turned_rows", "unstacked"]
