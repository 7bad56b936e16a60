"""The plan for one tensor: its sizes, what one rank holds of it, and what stands against it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Final

from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.checkpoint.reader import TensorInfo
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Dialect, Entry
from mxfp4_core.errors import Mxfp4Error, ShapeError
from mxfp4_core.jobs.planned import stored_as
from mxfp4_core.jobs.quantize import FLOATS
from mxfp4_core.naming.decision import Decision
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.naming.vocabulary import module_of, parse_expert
from mxfp4_core.parallel.shards import Parallel, Shard, shard_of

_WORDS: Final = ("block", "blocks", "experts", "h", "layer", "layers")
_NUMBER: Final = re.compile(
    rf"[.](?=[0-9])(?:{'|'.join(rf'(?<=[.]{word}[.])' for word in _WORDS)})[0-9]{{1,6}}(?=[.])"
)
"""The number of a layer or an expert with its dot, behind the word for it, in a name with a dot before it.

Sizes, splits and dialects go by the other parts.
"""


@dataclass(frozen=True)
class Row:
    """The plan for one tensor.

    Attributes:
        name: as in the checkpoint.
        shape: logical shape, with K last.
        dtype: as in the header.
        decision: what happens to it and why.
        bytes_before: bytes in the checkpoint.
        bytes_after: bytes of what is written: codes and scales with K padded to blocks, or the tensor itself.
        rank_bytes: bytes that one rank holds; its share where experts are divided.
        unit_bytes: bytes in high precision of the part that one rank quantises at once; 0 where it is kept.
        shard: what one rank holds; None where it is kept whole or cannot be cut.
        finding: why the plan cannot be carried out for this tensor; None where it can.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    decision: Decision
    bytes_before: int
    bytes_after: int
    rank_bytes: int
    unit_bytes: int = 0
    shard: Shard | None = None
    finding: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        shard = self.shard
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "quantize": self.decision.quantize,
            "reason": self.decision.reason,
            "pattern": self.decision.pattern,
            "matched": self.decision.matched,
            "format": self.decision.format if self.decision.quantize else None,
            "profile": self.decision.profile,
            "activation": self.decision.activation,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "rank_bytes": self.rank_bytes,
            "shard": shard and {"split": shard.split, "n": shard.n, "k": shard.k, "experts": shard.experts},
            "finding": self.finding,
        }


class Rows:
    """Makes the rows of one plan. What sets names apart by numbers of layers and experts alone is worked out once.

    Args:
        config: the settings of the plan.
        dialect: what it is to be written in.
        parallel: sizes of the parallel groups.
        facts: what config.json says about the model.
    """

    def __init__(self, config: Mxfp4Config, dialect: Dialect, parallel: Parallel, facts: ModelFacts) -> None:
        self._by = config, dialect, parallel, facts
        self._known: dict[tuple[object, ...], Row] = {}

    def of(self, info: TensorInfo, decision: Decision, entry: Entry | None) -> Row:
        """Return the plan for one tensor; see `row_of`.

        Args:
            info: the tensor.
            decision: what happens to it.
            entry: made by `planned` from it; None where it is kept.
        """
        key: tuple[object, ...] = (_NUMBER.sub(".0", f".{info.name}"), info.shape, info.dtype)
        if entry is not None:
            key += (entry.shape, entry.format, entry.transposed, entry.interleaved, entry.known)
        alike = self._known.get(key)
        if alike is None:
            row = row_of(info, decision, entry, *self._by)
            if row.finding is None:  # a finding tells the name
                self._known[key] = row
            return row
        return Row(
            info.name,
            alike.shape,
            info.dtype,
            decision,
            alike.bytes_before,
            alike.bytes_after,
            alike.rank_bytes,
            alike.unit_bytes,
            alike.shard,
        )


def row_of(
    info: TensorInfo,
    decision: Decision,
    entry: Entry | None,
    config: Mxfp4Config,
    dialect: Dialect,
    parallel: Parallel,
    facts: ModelFacts,
) -> Row:
    """Return the plan for one tensor; what stands against it is its ``finding``.

    Args:
        info: the tensor.
        decision: what happens to it.
        entry: how it would be stored; None where it is kept.
        config: the settings that it happens by.
        dialect: what it is to be written in.
        parallel: sizes of the parallel groups.
        facts: what config.json says about the model.
    """
    if entry is None:
        shape = info.shape
        return Row(
            info.name,
            shape,
            info.dtype,
            decision,
            info.nbytes,
            info.nbytes,
            _kept_bytes(info, shape, parallel, facts),
        )
    shape = entry.shape
    form = formats.get(entry.format)
    after = form.nbytes(shape)
    row = Row(info.name, shape, info.dtype, decision, info.nbytes, after, after, info.nbytes)
    finding = None
    try:
        if info.dtype not in FLOATS:
            raise ShapeError(
                f"tensor {info.name!r} cannot be quantised",
                seen=f"dtype {info.dtype}",
                rule=f"a weight is one of {', '.join(FLOATS)}",
                fix="add its name to ignore, or convert the source",
            )
        stored_as(entry, config, dialect)
    except Mxfp4Error as error:
        finding = _one_line(error)
    try:
        shard = shard_of(info.name, shape, parallel, facts, tail=config.tail, block=form.block)
    except ShapeError as error:
        return replace(row, finding=finding or _one_line(error))
    rank = form.nbytes((max(shard.experts, 1), shard.n, shard.k))
    unit = shard.values * (info.nbytes // max(1, math.prod(shape)))
    return replace(row, rank_bytes=-(-rank // shard.ranks), unit_bytes=unit, shard=shard, finding=finding)


def _kept_bytes(info: TensorInfo, shape: tuple[int, ...], parallel: Parallel, facts: ModelFacts) -> int:
    # An upper bound: what is no matrix, or cannot be cut evenly, counts whole on every rank.
    expert = parse_expert(module_of(info.name))
    stacked = expert is not None and expert.index is None
    if len(shape) != (3 if stacked else 2) or 0 in shape:
        return info.nbytes
    try:
        shard = shard_of(info.name, shape, parallel, facts, tail="pad")
    except ShapeError:
        return info.nbytes
    return -(-shard.values * (info.nbytes // math.prod(shape)) // shard.ranks)


def _one_line(error: Mxfp4Error) -> str:
    return f"{error.what}: {error.seen}; {error.rule}; {error.fix}"


__all__ = ["Row", "Rows", "row_of"]
