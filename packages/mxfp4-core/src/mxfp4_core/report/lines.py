"""Gather tensors into the lines of the report: one per tensor, one for all experts of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mxfp4_core.jobs.metrics import Metrics, merge
from mxfp4_core.report.model import Layer, Spread
from mxfp4_core.report.naming import group_of, kind_of, layer_of, natural_key

if TYPE_CHECKING:
    from mxfp4_core.checkpoint.header import TensorInfo

Decided = Literal["quantised", "kept"]

ByExpert = Mapping[int | None, Metrics]
"""Metrics of each expert of a stacked tensor, or of a plain tensor under None."""

_Key = tuple[str, Decided, str, tuple[int, ...]]


_Results = dict[str, dict[int | None, Metrics]]


@dataclass
class _Line:
    reason: str
    before: int = 0
    after: int = 0
    tensors: int = 0
    results: _Results = field(default_factory=_Results)


class Lines:
    """The lines so far. Experts share a line when they agree in decision, dtype and shape."""

    def __init__(self) -> None:
        self._lines: dict[_Key, _Line] = {}

    def add(
        self, info: TensorInfo, decision: Decided, reason: str, after: int, results: Mapping[str, ByExpert]
    ) -> None:
        """Add one tensor of the source.

        Args:
            info: the tensor.
            decision: what happened to it.
            reason: why.
            after: its bytes afterwards.
            results: by variant and expert; empty for a tensor that was kept as it is.
        """
        name, expert = group_of(info.name)
        line = self._lines.setdefault((name, decision, info.dtype, info.shape), _Line(reason))
        line.before += info.nbytes
        line.after += after
        line.tensors += 1
        for variant, parts in results.items():
            known = line.results.setdefault(variant, {})
            for number, metrics in parts.items():
                known[expert if number is None else number] = metrics

    def layers(self) -> tuple[Layer, ...]:
        """Return the lines, sorted by name with numbers counted up."""
        keys = sorted(self._lines, key=lambda key: (natural_key(key[0]), key[1:]))
        return tuple(_layer(key, self._lines[key]) for key in keys)


def _layer(key: _Key, line: _Line) -> Layer:
    name, decision, dtype, shape = key
    spread: dict[str, Spread] = {}
    for variant, parts in line.results.items():
        experts = {number: metrics for number, metrics in parts.items() if number is not None}
        if experts:
            spread[variant] = Spread.of(experts)
    return Layer(
        name=name,
        kind=kind_of(name),
        index=layer_of(name),
        dtype=dtype,
        shape=shape,
        tensors=line.tensors,
        decision=decision,
        reason=line.reason,
        bytes_before=line.before,
        bytes_after=line.after,
        results={variant: merge(parts.values()) for variant, parts in line.results.items()},
        spread=spread,
    )


__all__ = ["ByExpert", "Lines"]
