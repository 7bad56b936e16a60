"""The words that names are made of: fused modules and their shards, experts, prefixes, K-first tensors.

Everything that is known about how checkpoints and engines name the same weight lives here as data and pure
functions; the resolver only asks. A *leaf* is the smallest thing with a name of its own: one projection, or one
projection of one expert, as a checkpoint without any fusing would call it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from mxfp4_core._text import is_index
from mxfp4_core.config.patterns import WEIGHT_SUFFIX
from mxfp4_core.naming.families import Family, k_first_family

Fused = Mapping[str, Sequence[str]]

DEFAULT_FUSED: Final[Fused] = MappingProxyType(
    {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
        "w13": ("w1", "w3"),
        "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
        "in_proj_ba": ("in_proj_b", "in_proj_a"),
        "fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa"),
        "to_qkv": ("to_q", "to_k", "to_v"),
        "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    }
)
"""Fused modules of the common engines and the checkpoint names of their shards, in stacking order."""

# The two vocabularies of one expert's projections: Llama style and Mixtral style.
_EXPERT_SPELLINGS: Final = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_EXPERT_PART: Final = {
    **{name: name for name in _EXPERT_SPELLINGS},
    **{short: name for name, short in _EXPERT_SPELLINGS.items()},
}
_STACKED: Final[Mapping[str, tuple[str, ...]]] = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w13": ("gate_proj", "up_proj"),
    "w13_weight": ("gate_proj", "up_proj"),
    "w2_weight": ("down_proj",),
    **{name: (part,) for name, part in _EXPERT_PART.items()},
}
_ALL_PARTS: Final = tuple(_EXPERT_SPELLINGS)

# Where the language model sits in multimodal checkpoints and in the engines that load them.
_LANGUAGE_PREFIXES: Final = (
    "model.language_model.model",
    "model.language_model",
    "language_model.model",
    "language_model",
    "model",
)
_LANGUAGE_ROOTS: Final = frozenset({"layers", "embed_tokens", "norm", "lm_head"})


@dataclass(frozen=True)
class Spelling:
    """One way to write a name.

    Attributes:
        text: the name without ``.weight``.
        guard: for a spelling with a prefix that the name does not have: that prefix. A pattern that hits the
            prefix itself is about the tower and does not count through this spelling.
    """

    text: str
    guard: str = ""


@dataclass(frozen=True)
class ExpertName:
    """A name below a component ``experts``.

    Attributes:
        prefix: up to and with ``experts``.
        index: the expert, or None for all of them stacked.
        parts: Llama-style names of the projections that it holds.
    """

    prefix: str
    index: int | None
    parts: tuple[str, ...]

    def leaf(self, index: int, part: str) -> str:
        """Return the name of one projection of one expert."""
        return f"{self.prefix}.{index}.{part}"


def module_of(name: str) -> str:
    """Return the name without a trailing ``.weight``."""
    return name.removesuffix(WEIGHT_SUFFIX)


def weight_of(module: str) -> str:
    """Return the name of the tensor: with ``.weight``, except for stacked experts, which are bare parameters."""
    expert = parse_expert(module)
    return module if expert is not None and expert.index is None else module + WEIGHT_SUFFIX


@functools.lru_cache(maxsize=1 << 15)  # every step of a plan asks again about every name
def parse_expert(module: str) -> ExpertName | None:
    """Read a name below ``experts``; None where there is no such component or no expert weight below it."""
    head, found, tail = f"{module}.".rpartition("experts.")
    if not found or (head and not head.endswith(".")):
        return None
    prefix, parts = f"{head}experts", tail.rstrip(".").split(".") if tail else []
    if not parts:
        return ExpertName(prefix, None, _ALL_PARTS)
    index = int(parts[0]) if is_index(parts[0]) else None
    rest = parts if index is None else parts[1:]
    if not rest:
        return ExpertName(prefix, index, _ALL_PARTS)
    if len(rest) != 1 or rest[0] not in _STACKED:
        return None
    return ExpertName(prefix, index, _STACKED[rest[0]])


def shards_of(module: str, fused: Fused) -> list[str]:
    """Return the shard names of a fused module, or nothing where the name is not a fused one."""
    parent, dot, last = module.rpartition(".")
    return [f"{parent}{dot}{shard}" for shard in fused.get(last, ())]


def fused_names(leaf: str, fused: Fused) -> Iterator[tuple[str, list[str]]]:
    """Yield every fused spelling that a leaf is part of, with all shards of it."""
    if (expert := parse_expert(leaf)) is not None and expert.index is not None:
        for name, parts in _STACKED.items():
            if set(expert.parts) <= set(parts):
                shards = [expert.leaf(expert.index, part) for part in parts]
                yield f"{expert.prefix}.{name}", shards
                if len(parts) > 1:
                    yield f"{expert.prefix}.{expert.index}.{name}", shards
        return
    parent, dot, last = leaf.rpartition(".")
    for name, members in fused.items():
        if last in members:
            yield f"{parent}{dot}{name}", [f"{parent}{dot}{member}" for member in members]


def operator_of(module: str) -> str:
    """Return the module that engines run as one operator and that this one is a part of: experts, or what is fused."""
    if (expert := parse_expert(module)) is not None:
        return expert.prefix
    return next((fused for fused, _ in fused_names(module, DEFAULT_FUSED)), module)


def spellings(module: str, renames: Sequence[tuple[str, str]] = ()) -> list[Spelling]:
    """Return every way to write a name that means this weight and nothing larger.

    Args:
        module: a name without ``.weight``.
        renames: pairs of component runs, engine name and checkpoint name; ``^`` before the first anchors it.
    """
    texts = [module]
    for engine, checkpoint in renames:
        for old, new in ((engine, checkpoint), (checkpoint, engine)):
            texts += [renamed for text in texts[:] if (renamed := rename(text, old, new)) != text]
    found: dict[str, Spelling] = {}
    for text in dict.fromkeys(texts):
        for variant in _expert_variants(text):
            found.setdefault(variant, Spelling(variant))
            for spelling in _language_variants(variant):
                found.setdefault(spelling.text, spelling)
    return list(found.values())


def rename(name: str, source: str, result: str) -> str:
    """Replace the first run of whole components ``source`` by ``result``; ``^`` before either anchors both."""
    anchored = source.startswith("^") or result.startswith("^")
    old, new = (text.removeprefix("^").strip(".") for text in (source, result))
    dotted = f".{name}."
    if not old:
        return f"{new}.{name}" if anchored and new else name
    start = dotted.find(f".{old}.")
    if start < 0 or (anchored and start > 0):
        return name
    return (dotted[:start] + (f".{new}." if new else ".") + dotted[start + len(old) + 2 :]).strip(".")


def _expert_variants(module: str) -> list[str]:
    expert = parse_expert(module)
    if expert is None or expert.index is None or len(expert.parts) != 1:
        return [module]
    (part,) = expert.parts
    return list(
        dict.fromkeys(
            [module, expert.leaf(expert.index, part), expert.leaf(expert.index, _EXPERT_SPELLINGS[part])]
        )
    )


def _language_variants(module: str) -> Iterator[Spelling]:
    for prefix in _LANGUAGE_PREFIXES:
        rest = module.removeprefix(f"{prefix}.")
        if rest != module and rest.split(".", 1)[0] in _LANGUAGE_ROOTS:
            yield from (Spelling(f"{other}.{rest}", other) for other in _LANGUAGE_PREFIXES if other != prefix)
            if rest.startswith("lm_head"):
                yield Spelling(rest)
            return
    if module == "lm_head":
        yield from (Spelling(f"{other}.lm_head", other) for other in _LANGUAGE_PREFIXES)


def transposed(name: str, model_type: str) -> bool:
    """Return whether a BF16 checkpoint of this model type stores the weight with K before N.

    Stacked experts of gpt-oss are ``[E, K, N]`` (gate_up_proj ``[E, H, 2I]``, down_proj ``[E, I, H]``), and so are
    those of some other families; those of all other models are ``[E, N, K]``, and the weights of a single expert
    are never K-first. The table in ``families.py`` has the model types, each with its source.

    Args:
        name: a tensor or module name.
        model_type: ``model_type`` of config.json.
    """
    return k_first_row(name, model_type) is not None


def k_first_row(name: str, model_type: str) -> Family | None:
    """Return the row of the table by which a stored weight has K before N, or None; see `transposed`."""
    module = module_of(name)
    alone, stack = _k_first_rows(module.rsplit(".", 1)[-1], model_type)
    if alone is stack:
        return alone
    expert = parse_expert(module)
    return stack if expert is not None and expert.index is None else alone


@functools.lru_cache(maxsize=1 << 12)
def _k_first_rows(last: str, model_type: str) -> tuple[Family | None, Family | None]:
    """Return the rows of the table for a component of a name, of a weight by itself and of a stack of experts."""
    return k_first_family(last, model_type, stacked=False), k_first_family(last, model_type, stacked=True)


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as text with runs collapsed: ``0-3, 7``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


__all__ = [
    "DEFAULT_FUSED",
    "ExpertName",
    "Fused",
    "Spelling",
    "fused_names",
    "k_first_row",
    "module_of",
    "operator_of",
    "parse_expert",
    "ranges",
    "rename",
    "shards_of",
    "spellings",
    "transposed",
    "weight_of",
]
