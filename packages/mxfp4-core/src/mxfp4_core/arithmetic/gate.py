"""The gated activations of experts, as numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """The gated activation between the two matmuls of an expert.

    ``gate = min(gate, limit)``, ``up = clamp(up, -limit, limit)``,
    ``h = (up + up_offset) * gate * sigmoid(alpha * gate)``.

    The defaults are SiLU. gpt-oss is ``Gate(1.702, 7.0, 1.0, interleaved=True)``, DeepSeek-V4
    ``Gate(limit=10.0)``.

    Attributes:
        alpha: factor inside the sigmoid.
        limit: clamp, None for no clamp.
        up_offset: what is added to ``up``.
        interleaved: rows of the gate-up weight are gate 0, up 0, gate 1, up 1, …; otherwise all gate rows
            come first.
    """

    alpha: float = 1.0
    limit: float | None = None
    up_offset: float = 0.0
    interleaved: bool = False

    @property
    def is_silu(self) -> bool:
        """Say whether this is plain SiLU, whatever the order of the rows."""
        return (self.alpha, self.limit, self.up_offset) == (1.0, None, 0.0)


SILU = Gate()
GPT_OSS_SWIGLU = Gate(alpha=1.702, limit=7.0, up_offset=1.0, interleaved=True)

__all__ = ["GPT_OSS_SWIGLU", "SILU", "Gate"]
