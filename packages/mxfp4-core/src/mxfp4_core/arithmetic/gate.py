"""The activations of experts, as numbers and words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from mxfp4_core.errors import ConfigError

Function = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]

FUNCTIONS: Final[tuple[str, ...]] = get_args(Function)
"""What an activation can be a function of; see `Gate`."""


@dataclass(frozen=True)
class Gate:
    """The activation between the two matmuls of an expert, gated or not.

    Gated, the first weight has gate rows and up rows, and with ``gate = min(gate, limit)``,
    ``up = clamp(up, -limit, limit)``:  ``h = (up + up_offset) * f(gate)``. Without a gate it has up rows alone, and
    ``h = f(up)``. The functions f, as transformers computes them:

    ==============  ================================================================================
    ``silu``        ``x * sigmoid(alpha * x)``; alpha 1.702 is what is called quick GELU
    ``gelu``        ``x / 2 * (1 + erf(x / sqrt(2)))``
    ``gelu_tanh``   ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))``
    ``relu``        ``max(x, 0)``
    ``relu2``       ``max(x, 0)^2``
    ==============  ================================================================================

    The defaults are SiLU with a gate. gpt-oss is ``Gate(1.702, 7.0, 1.0, interleaved=True)``, DeepSeek-V4
    ``Gate(limit=10.0)``, Gemma 4 ``Gate(function="gelu_tanh")``, Nemotron-H ``Gate(function="relu2", gated=False)``.

    Attributes:
        alpha: factor inside the sigmoid of ``silu``.
        limit: clamp, None for no clamp.
        up_offset: what is added to ``up``.
        interleaved: rows of the first weight are gate 0, up 0, gate 1, up 1, …; otherwise all gate rows
            come first.
        function: f.
        gated: whether there are gate rows.

    Raises:
        ConfigError: another word, alpha of another function, or what belongs to a gate where there is none.
    """

    alpha: float = 1.0
    limit: float | None = None
    up_offset: float = 0.0
    interleaved: bool = False
    function: Function = "silu"
    gated: bool = True

    def __post_init__(self) -> None:
        if self.function == "silu" and self.gated:
            return
        rule = fix = ""
        if self.function not in FUNCTIONS:
            rule, fix = (
                f"function is one of {', '.join(FUNCTIONS)}",
                "keep experts of another one out of MXFP4",
            )
        elif self.function != "silu" and self.alpha != 1.0:
            rule, fix = "alpha is the factor inside the sigmoid of silu", "leave alpha out"
        elif not self.gated and (self.limit is not None or self.up_offset or self.interleaved):
            rule, fix = "limit, up_offset and the order of rows are those of a gate", "leave them out"
        if rule:
            raise ConfigError("an activation of experts", seen=repr(self), rule=rule, fix=fix)

    @classmethod
    def of(
        cls,
        alpha: float,
        limit: float | None,
        up_offset: float,
        interleaved: bool,
        function: str,
        gated: bool,
    ) -> Gate:
        """Return the gate whose `arguments` these are."""
        return cls(alpha, limit, up_offset, interleaved, cast(Function, function), gated)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The attributes in their order, as operators take them: float, float or None, float, bool, str, bool."""
        return self.alpha, self.limit, self.up_offset, self.interleaved, self.function, self.gated

    @property
    def is_silu(self) -> bool:
        """Say whether this is plain SiLU with a gate, whatever the order of the rows."""
        return self.gated and self.function == "silu" and self._plain

    @property
    def rows(self) -> int:
        """Rows of the first weight for each value of the hidden state."""
        return 2 if self.gated else 1

    @property
    def halves(self) -> bool:
        """Say whether the first weight is gate rows and then up rows."""
        return self.gated and not self.interleaved

    @property
    def words(self) -> frozenset[str]:
        """The features that a backend lists which computes this; see ``Problem.features``."""
        silu = self.function == "silu"
        words = {"gate:clamped" if silu and not self._plain else f"gate:{self.function}"}
        if not silu and not self._plain:
            words.add("gate:clamped")
        if not self.gated:
            words.add("gate:none")
        if self.interleaved:
            words.add("rows:interleaved")
        return frozenset(words)

    @property
    def _plain(self) -> bool:
        return (self.alpha, self.limit, self.up_offset) == (1.0, None, 0.0)


SILU = Gate()
GPT_OSS_SWIGLU = Gate(alpha=1.702, limit=7.0, up_offset=1.0, interleaved=True)

__all__ = ["FUNCTIONS", "GPT_OSS_SWIGLU", "SILU", "Function", "Gate"]
