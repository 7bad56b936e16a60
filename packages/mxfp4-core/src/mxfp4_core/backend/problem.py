"""A question to the backends: one operator with its sizes, on one device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mxfp4_core.backend.device import Device
from mxfp4_core.errors import ConfigError, ShapeError

Op = Literal["linear", "moe", "quantize"]
Matrix = Literal["weight", "gate_up", "down"]
Activation = Literal["none", "mxfp4", "fp8"]


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


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question to the backends: can you do this, here? Sizes are those of this rank, without padding.

    Attributes:
        op: ``linear``, ``moe`` (gate-up matmul, gate, down matmul, weighted sum over the chosen experts) or
            ``quantize`` (weight to canonical codes and scales on the device).
        n: output features; for ``moe`` the intermediate size, so gate-up is [experts, 2n, k] and down
            [experts, k, n].
        k: input features; for ``moe`` the hidden size.
        m: tokens, None if it will vary.
        experts: experts whose weights this rank holds, 0 unless ``moe``.
        total_experts: experts that the router knows; more than ``experts`` under expert parallelism, which
            comes with an expert map. 0 means the same as ``experts``.
        top_k: experts per token, 0 unless ``moe``.
        gate: the gated activation, used by ``moe``.
        dtype: torch name of the dtype of x and of the result.
        activation: how x is quantised inside: not at all, to MXFP4 or to FP8.
        bias: the weight, or both expert weights, come with a bias.
        requires: further features that the caller cannot do without. A backend which does not list one of
            them is never asked, so a word that is new tomorrow is refused by the backends of today.
        device: where.
    """

    op: Op
    n: int
    k: int
    m: int | None = None
    experts: int = 0
    total_experts: int = 0
    top_k: int = 0
    gate: Gate = SILU
    dtype: str = "bfloat16"
    activation: Activation = "none"
    bias: bool = False
    requires: frozenset[str] = frozenset()
    device: Device = field(default_factory=Device.current)

    def __post_init__(self) -> None:
        if self.op not in ("linear", "moe", "quantize"):
            raise ConfigError(
                "Problem",
                seen=f"op={self.op!r}",
                rule="op is linear, moe or quantize",
                fix="use one of these three words",
            )
        if self.n < 1 or self.k < 1 or (self.m is not None and self.m < 0):
            raise ShapeError(
                f"Problem({self.op})",
                seen=f"m={self.m} n={self.n} k={self.k}",
                rule="n and k are at least 1, m at least 0",
                fix="give the sizes of the weight on this rank: n output features, k input features",
            )
        if not self.total_experts:
            object.__setattr__(self, "total_experts", self.experts)
        moe = self.op == "moe"
        sound = 1 <= self.experts <= self.total_experts and 1 <= self.top_k <= self.total_experts
        if (moe and not sound) or (not moe and (self.experts or self.top_k or self.total_experts)):
            raise ShapeError(
                f"Problem({self.op})",
                seen=f"experts={self.experts} total_experts={self.total_experts} top_k={self.top_k}",
                rule="1 <= experts <= total_experts and 1 <= top_k <= total_experts for moe, none for others",
                fix="set experts and top_k for op='moe' only",
            )

    @property
    def features(self) -> frozenset[str]:
        """Everything that a backend must list in its own ``features`` before it is asked."""
        words = {self.op, f"dtype:{self.dtype}", *self.requires}
        if self.bias:
            words.add("bias")
        if self.activation != "none":
            words.add(f"activation:{self.activation}")
        if self.op == "moe":
            words.add("gate:silu" if self.gate.is_silu else "gate:clamped")
            if self.gate.interleaved:
                words.add("rows:interleaved")
            if self.total_experts > self.experts:
                words.add("expert-map")
        return frozenset(words)

    def __str__(self) -> str:
        text = f"{self.op} m={'any' if self.m is None else self.m} n={self.n} k={self.k}"
        if self.op == "moe":
            text += f" experts={self.experts}/{self.total_experts} top_k={self.top_k}"
        extra = "".join(f" {word}" for word in sorted(self.features - {self.op, f"dtype:{self.dtype}"}))
        return f"{text} {self.dtype}{extra} on {self.device}"


__all__ = ["GPT_OSS_SWIGLU", "SILU", "Activation", "Gate", "Matrix", "Op", "Problem"]
