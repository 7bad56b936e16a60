"""What one rank of a parallel run holds of a weight, told from the names that engines shard by.

Engines split a linear layer by its place in the block: the first matmuls by columns (output features), the last one
by rows (input features), so that one sum over the ranks suffices. Experts are divided among expert-parallel ranks
first; what remains of the tensor-parallel size cuts inside each expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.errors import ConfigError, ShapeError, check_type
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.naming.vocabulary import ExpertName, module_of, parse_expert
from mxfp4_core.parallel.ranges import Tail, expert_ranges, merged_ranges, qkv_ranges, shard_ranges

Split = Literal["columns", "rows", "none"]

_COLUMN_NAMES: Final = (
    "q_proj k_proj v_proj qkv_proj q_b_proj kv_b_proj qkv query_key_value c_attn wq wk wv",
    "gate_proj up_proj gate_up_proj w1 w3 w13 fc1 linear_fc1 c_fc dense_h_to_4h proj_mlp",
    "in_proj in_proj_qkv in_proj_z in_proj_a in_proj_b in_proj_qkvz in_proj_ba",
    "to_q to_k to_v to_qkv add_q_proj add_k_proj add_v_proj to_added_qkv",
)
_ROW_NAMES: Final = (
    "o_proj out_proj wo down_proj w2 fc2 linear_fc2 c_proj dense_4h_to_h to_add_out proj_out",
)
_COLUMNS: Final = frozenset(" ".join(_COLUMN_NAMES).split())
_ROWS: Final = frozenset(" ".join(_ROW_NAMES).split())
_COLUMNS_IN: Final = (("net", "0", "proj"),)
_ROWS_IN: Final = (("to_out", "0"), ("net", "2"), ("attn", "proj"), ("attention", "dense"))
_MERGED: Final = frozenset({"gate_up_proj", "w13"})
_HEADS: Final = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}


@dataclass(frozen=True)
class Parallel:
    """Sizes of the parallel groups.

    Attributes:
        tp: tensor-parallel size.
        ep: expert-parallel size; 1 cuts every expert ``tp`` ways.
    """

    tp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for name, size in (("tp", self.tp), ("ep", self.ep)):
            check_type(size, int, name)
        if self.tp < 1 or self.ep < 1 or (self.tp % self.ep and self.ep % self.tp):
            raise ConfigError(
                "these parallel sizes do not go together",
                seen=f"tp = {self.tp}, ep = {self.ep}",
                rule="both are at least 1, and one divides the other",
                fix="use --ep 1, or --ep equal to --tp",
            )

    @property
    def expert_tp(self) -> int:
        """Return how many ranks share one expert."""
        return self.tp // self.ep if self.tp >= self.ep else 1


@dataclass(frozen=True)
class Shard:
    """What the rank with the largest part holds of one weight.

    Attributes:
        split: how the matrix is cut.
        n: output features on this rank; of gate and up together where they are one tensor.
        k: input features on this rank.
        experts: experts of the tensor that this rank holds; 0 for a weight without an expert axis.
        ranks: among how many ranks whole tensors of this kind are divided (experts that are stored apart).
    """

    split: Split
    n: int
    k: int
    experts: int = 0
    ranks: int = 1

    @property
    def values(self) -> int:
        """Return the number of weights."""
        return max(self.experts, 1) * self.n * self.k


def split_of(name: str) -> Split:
    """Return how engines cut the weight of this name under tensor parallelism; ``none`` where every rank has it all."""
    parts = tuple(module_of(name).split("."))
    if parts[-1] in _COLUMNS or any(parts[-len(run) :] == run for run in _COLUMNS_IN):
        return "columns"
    if parts[-1] in _ROWS or any(parts[-len(run) :] == run for run in _ROWS_IN):
        return "rows"
    return "none"


def shard_of(
    name: str,
    shape: Sequence[int],
    parallel: Parallel,
    facts: ModelFacts,
    *,
    tail: Tail = "refuse",
    block: int = BLOCK,
) -> Shard:
    """Return what one rank holds of a weight.

    Args:
        name: name of the weight or module.
        shape: logical ``[N, K]`` or ``[E, N, K]``.
        parallel: the parallel sizes.
        facts: heads and experts of the model.
        tail: whether the part of a rank may end inside a block and be padded by that rank.
        block: values along K that share a scale of the format.

    Raises:
        ShapeError: a rank would get a part of a block, of a head or of an expert, or nothing.
    """
    *stack, n, k = shape
    expert = parse_expert(module_of(name))
    if expert is not None:
        return _expert_shard(name, expert, stack, n, k, parallel, facts, tail, block)
    split = split_of(name)
    if parallel.tp == 1 or split == "none":
        return Shard("none", n, k)
    if split == "rows":
        return Shard("rows", n, _rows(k, parallel.tp, name, tail, block))
    return Shard("columns", _columns(name, n, parallel.tp, facts), k)


def _expert_shard(
    name: str,
    expert: ExpertName,
    stack: Sequence[int],
    n: int,
    k: int,
    parallel: Parallel,
    facts: ModelFacts,
    tail: Tail,
    block: int,
) -> Shard:
    if n % len(expert.parts):
        raise ShapeError(
            f"{name} cannot be cut",
            seen=f"N = {n} for {' and '.join(expert.parts)}",
            rule="the parts of a fused weight have as many rows each",
            fix="use the config.json and the files that belong together",
        )
    count = stack[0] if stack else facts.experts
    held = count
    if parallel.ep > 1 and count:
        low, high = expert_ranges(count, parallel.ep, tensor=expert.prefix)[0]
        held = high - low
    ranks = 1 if stack else parallel.ep
    experts = held if stack else 0
    tp, down = parallel.expert_tp, expert.parts == ("down_proj",)
    if tp == 1:
        return Shard("none", n, k, experts, ranks)
    if down:
        return Shard("rows", n, _rows(k, tp, name, tail, block), experts, ranks)
    members = [n // len(expert.parts)] * len(expert.parts)
    rows = sum(high - low for low, high in merged_ranges(members, tp, tensor=name)[0])
    return Shard("columns", rows, k, experts, ranks)


def _columns(name: str, n: int, tp: int, facts: ModelFacts) -> int:
    parts = module_of(name).split(".")
    if (which := _HEADS.get(parts[-1])) and facts.heads and _in_language_model(parts):
        heads = facts.heads if which == "q" else facts.kv_heads
        if n % heads == 0:
            low, high = qkv_ranges(facts.heads, facts.kv_heads, n // heads, tp, tensor=name)[0][which]
            return high - low
    members = [n // 2] * 2 if parts[-1] in _MERGED and n % 2 == 0 else [n]
    return sum(high - low for low, high in merged_ranges(members, tp, tensor=name)[0])


def _rows(k: int, tp: int, name: str, tail: Tail, block: int) -> int:
    if tail == "pad":
        # Engines divide K evenly, and each rank then pads its own part: blocks belong to one rank either way.
        low, high = shard_ranges(k, tp, tensor=name, dim="k")[0]
        return high - low
    try:
        low, high = shard_ranges(k, tp, multiple=block, tensor=name, dim="k")[0]
    except ShapeError as error:
        fix = error.fix + ("; tail='pad' lets each rank pad its part, which is exact" if k % tp == 0 else "")
        raise ShapeError(error.what, seen=error.seen, rule=error.rule, fix=fix) from None
    return high - low


def _in_language_model(parts: Sequence[str]) -> bool:
    return "layers" in parts and set(parts[: parts.index("layers")]) <= {"model", "language_model"}


__all__ = ["Parallel", "Shard", "Split", "shard_of", "split_of"]
