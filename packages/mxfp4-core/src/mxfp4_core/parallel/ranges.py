"""Where tensor and expert parallelism may cut a weight.

A block of 32 along K shares one scale, so K may only be cut between blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mxfp4_core.arithmetic.shapes import padded
from mxfp4_core.errors import ShapeError

Tail = Literal["refuse", "pad"]
Range = tuple[int, int]


def shard_ranges(
    size: int, parts: int, *, multiple: int = 1, tensor: str, dim: str, tail: Tail = "refuse"
) -> list[Range]:
    """Cut one dimension into ``parts`` equal ranges that begin and end between multiples.

    Args:
        size: length of the dimension, in elements.
        parts: how many ranks share it.
        multiple: 32 for K, so that no block is cut; 1 for N.
        tensor: name of the tensor, for the error.
        dim: what is cut, for the error: ``"n"``, ``"k"`` or a word such as ``"experts"``.
        tail: ``"refuse"`` wants every range equal and whole; ``"pad"`` rounds the range up, so that the last one
            is shorter and its rank pads it.

    Returns:
        ``parts`` half-open ranges, in rank order, that cover ``[0, size)`` without a gap or an overlap.

    Raises:
        ShapeError: the cut would split a block, be unequal, or leave a rank with nothing.
    """
    if parts < 1 or size < 1:
        raise _cut(tensor, dim, size, parts, multiple, "sizes and the number of parts are at least 1")
    if tail == "pad":
        step = padded(-(-size // parts), multiple)
        if step * (parts - 1) >= size:
            raise _cut(
                tensor, dim, size, parts, multiple, f"each of the {parts} ranks needs at least one element"
            )
    else:
        step, rest = divmod(size, parts)
        if rest:
            raise _cut(tensor, dim, size, parts, multiple, f"the {parts} ranks get equal parts")
        if step % multiple:
            rule = f"a shard of {dim} is a multiple of {multiple}, to cut no block; here it would be {step}"
            raise _cut(tensor, dim, size, parts, multiple, rule)
    return [(rank * step, min((rank + 1) * step, size)) for rank in range(parts)]


def legal_parts(size: int, multiple: int = 1, *, limit: int = 64) -> list[int]:
    """Return every number of ranks up to ``limit`` that divides ``size`` into whole multiples."""
    return [parts for parts in range(1, limit + 1) if size % (parts * multiple) == 0]


def _cut(tensor: str, dim: str, size: int, parts: int, multiple: int, rule: str) -> ShapeError:
    unit = max(parts, 1) * multiple
    sizes = dict.fromkeys(near for near in (size // unit * unit, padded(max(size, 1), unit)) if near > 0)
    legal = legal_parts(size, multiple) if size > 0 else []
    near = sorted(legal, key=lambda ranks: (abs(ranks - parts), ranks))[:3]
    fix = f"use TP or EP size {_either(sorted(near))}" if near else "do not shard it"
    fix += f"; with {parts} ranks the nearest legal {dim} is {_either(list(sizes))}"
    if parts == 1 and dim == "k":  # no cut is in question, the weight itself ends inside a block
        fix += "; or pass tail='pad', which pads it with exact zeros, or keep it in high precision: ignore"
    return ShapeError(
        f"{tensor} cannot be sharded along {dim}",
        seen=f"{dim} = {size} over {parts} ranks",
        rule=rule,
        fix=fix,
    )


def _either(numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last


def merged_ranges(
    sizes: Sequence[int], parts: int, *, tensor: str, tail: Tail = "refuse"
) -> list[list[Range]]:
    """Cut a merged column (gate and up, or any stack of N) so that each rank gets its part of every member.

    Args:
        sizes: output features of each member, in the order in which they are stacked.
        parts: how many ranks share it.
        tensor: name of the tensor, for the error.
        tail: as in ``shard_ranges``.

    Returns:
        One list for each rank: the ranges of the merged N axis that it holds, one for each member.

    Raises:
        ShapeError: a member cannot be cut.
    """
    start, members = 0, []
    for index, size in enumerate(sizes):
        ranges = shard_ranges(size, parts, tensor=f"{tensor} (part {index})", dim="n", tail=tail)
        members.append([(start + low, start + high) for low, high in ranges])
        start += size
    return [[member[rank] for member in members] for rank in range(parts)]


def qkv_ranges(
    heads: int, kv_heads: int, head_dim: int, parts: int, *, tensor: str, v_head_dim: int | None = None
) -> list[dict[str, Range]]:
    """Cut attention projections by whole heads; key and value heads are replicated where there are too few.

    Args:
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: features of one head.
        parts: tensor-parallel size.
        tensor: name of the tensor or module, for the error.
        v_head_dim: features of one value head, where they differ.

    Returns:
        For each rank the rows of ``q``, ``k`` and ``v``, each counted in its own tensor. With fewer key heads
        than ranks, neighbouring ranks hold the same head.

    Raises:
        ShapeError: query heads do not divide, or key heads and ranks do not divide each other.
    """
    q = shard_ranges(heads, parts, tensor=tensor, dim="query heads")
    if kv_heads >= parts or kv_heads < 1:
        kv = shard_ranges(kv_heads, parts, tensor=tensor, dim="key heads")
    elif parts % kv_heads == 0:
        kv = [(rank * kv_heads // parts, rank * kv_heads // parts + 1) for rank in range(parts)]
    else:
        legal = [n for n in range(1, 65) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
        raise ShapeError(
            f"{tensor} cannot be sharded along heads",
            seen=f"{kv_heads} key and value heads over {parts} ranks",
            rule="key and value heads are divided among the ranks, or each goes to equally many ranks",
            fix=f"use TP size {_either(legal)}",
        )
    v_dim = head_dim if v_head_dim is None else v_head_dim
    return [
        {
            "q": (q[rank][0] * head_dim, q[rank][1] * head_dim),
            "k": (kv[rank][0] * head_dim, kv[rank][1] * head_dim),
            "v": (kv[rank][0] * v_dim, kv[rank][1] * v_dim),
        }
        for rank in range(parts)
    ]


def expert_ranges(experts: int, parts: int, *, tensor: str) -> list[Range]:
    """Cut the expert axis into equal ranges of whole experts.

    Raises:
        ShapeError: the experts do not divide evenly.
    """
    return shard_ranges(experts, parts, tensor=tensor, dim="experts")


__all__ = ["Range", "Tail", "expert_ranges", "legal_parts", "merged_ranges", "qkv_ranges", "shard_ranges"]
