"""How far the weights of a quantised checkpoint are from those of its source: SQNR, layer by layer, as a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.checkpoint.tasks import Progress
from mxfp4_core.dialects.base import Entry
from mxfp4_core.jobs.metrics import State, merge

if TYPE_CHECKING:
    from mxfp4_core.jobs.metrics import Metrics

# Those of which no number tells are told first: NaN, and values where the source has none.
_RANK: Mapping[State, int] = {"nonfinite": 0, "no_signal": 1, "finite": 2, "exact": 3}


@dataclass(frozen=True)
class LayerError:
    """The error of one weight.

    Attributes:
        weight: its canonical name.
        state: ``finite`` where ``sqnr_db`` is a number; ``exact``, ``no_signal`` (the source is zero, the stored values
            are not) or ``nonfinite`` (NaN or infinity on either side).
        sqnr_db: ``10 * log10(sum(w**2) / sum((w - d)**2))`` with ``d`` the stored value, else None.
        max_error: the largest ``abs(w - d)``.
        values: how many were compared.
    """

    weight: str
    state: State
    sqnr_db: float | None
    max_error: float
    values: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return dict(self.__dict__)

    def __str__(self) -> str:
        """Return it in one line."""
        told = f"{self.sqnr_db:.2f} dB" if self.sqnr_db is not None else self.state
        return f"{self.weight}: {told}, largest error {self.max_error:.3g}"


def layer_error(weight: str, metrics: Metrics) -> LayerError:
    """Return the error that these sums stand for."""
    return LayerError(weight, metrics.state, metrics.sqnr_db, metrics.max_error, metrics.values)


def worst_first(layers: list[LayerError]) -> list[LayerError]:
    """Sort by SQNR, the lowest first; what no number tells of comes before, what is exact after all others."""
    return sorted(layers, key=lambda each: (_RANK[each.state], each.sqnr_db or 0.0, each.weight))


@dataclass(frozen=True)
class Against:
    """Measure the weights that one file holds.

    Args:
        checkpoint: the quantised checkpoint.
        original: the source, which has a tensor of the same logical shape for each entry.
        entries: the weights.
    """

    checkpoint: Checkpoint
    original: Checkpoint
    entries: tuple[Entry, ...]

    @property
    def source_bytes(self) -> int:
        """Bytes of the source that are read."""
        return sum(self.original.tensors[entry.weight].nbytes for entry in self.entries)

    def run(self, progress: Progress) -> tuple[LayerError, ...]:
        """Read both, piece by piece; memory is that of a few pieces of 4 million values.

        Raises:
            CheckpointError: a file that cannot be read.
            ConfigError: numba is not installed, or the source is not in BF16, FP16 or FP32.
        """
        from mxfp4_core.jobs.measured import measured_error

        found = []
        for entry in self.entries:
            info = self.original.tensors[entry.weight]
            by_expert = measured_error(
                self.original, info, self.checkpoint, entry, lambda name, nbytes: progress(nbytes)
            )
            found.append(layer_error(entry.weight, merge(by_expert.values())))
        return tuple(found)


__all__ = ["Against", "LayerError", "layer_error", "worst_first"]
