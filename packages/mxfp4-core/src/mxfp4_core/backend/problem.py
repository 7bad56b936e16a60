"""A question to the backends: one operator with its sizes, on one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from mxfp4_core._text import did_you_mean
from mxfp4_core.arithmetic.formats.registry import formats, get
from mxfp4_core.arithmetic.gate import GPT_OSS_SWIGLU, SILU, Gate
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.options import NO_OPTIONS, Options, Value
from mxfp4_core.config.words import ACTIVATIONS, Activation
from mxfp4_core.errors import ConfigError, ShapeError

Op = Literal["linear", "moe", "quantize"]
Matrix = Literal["weight", "gate_up", "down"]
Tokens = Literal["flat", "batched", "masked"]

DTYPES: Final = ("bfloat16", "float16", "float32", "float64")
"""Torch names of the dtypes that activations can have."""

PLAIN: Final = "mxfp4"
"""The format that every backend takes, so that it has no word."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question to the backends: can you do this, here? Sizes are those of this rank, without padding.

    Attributes:
        op: ``linear``, ``moe`` (gate-up matmul, gate, down matmul, weighted sum over the chosen experts) or
            ``quantize`` (weight to canonical codes and scales on the device).
        n: output features; for ``moe`` the intermediate size, so gate-up is [experts, 2n, k], without a gate
            [experts, n, k], and down [experts, k, n].
        k: input features; for ``moe`` the hidden size.
        m: tokens, None if it will vary.
        experts: experts whose weights this rank holds, 0 unless ``moe``.
        total_experts: experts that the router knows; more than ``experts`` under expert parallelism, which
            comes with an expert map. 0 means the same as ``experts``.
        top_k: experts per token, 0 unless ``moe``.
        gate: the activation between the two matmuls of ``moe``.
        dtype: torch name of the dtype of x and of the result: ``bfloat16``, ``float16``, ``float32``, ``float64``.
        activation: how x is quantised inside: ``none``, ``mxfp4``, ``mxfp8``, ``fp8``, or ``auto``, which leaves it
            to the backend: its `Yes` says which one it is.
        bias: the weight, or both expert weights, come with a bias.
        format: name of the format of the weights; see ``mxfp4_core.arithmetic.formats``.
        shared_experts: experts that every token goes to with weight 1, beside its ``top_k``. Their weights stand
            behind those of the ``experts`` in the same stacks. For ``moe`` with flat tokens.
        tokens: how the rows of ``moe`` arrive. ``flat``: [m, k] in any order, with the router's choice. Where an
            engine has sorted them already, [experts, rows, k], and the result has the same shape and is not weighted:
            ``batched``, in which every row is a token, and ``masked``, in which only the first ``counts[e]`` are; the
            others are not read, and what the result holds there has no meaning.
        options: what the config's ``backend_options`` say for the backend that is asked.
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
    format: str = PLAIN
    shared_experts: int = 0
    tokens: Tokens = "flat"
    options: Mapping[str, Value] = NO_OPTIONS
    requires: frozenset[str] = frozenset()
    device: Device = field(default_factory=Device.current)

    def __post_init__(self) -> None:
        for name, word, words in (
            ("op", self.op, get_args(Op)),
            ("dtype", self.dtype, DTYPES),
            ("activation", self.activation, ACTIVATIONS),
            ("tokens", self.tokens, get_args(Tokens)),
        ):
            _check_word(name, word, words)
        if self.format != PLAIN:
            _check_word("format", self.format, formats())
            kind = get(self.format)
            _INPUTS.update(
                {(self.format, word): kind.input_format(word) for word in ACTIVATIONS if word != "auto"}
            )
        if not isinstance(self.options, Options):
            object.__setattr__(self, "options", Options(self.options))
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
        if self.shared_experts < 0 or (self.shared_experts and (not moe or self.tokens != "flat")):
            raise ShapeError(
                f"Problem({self.op})",
                seen=f"shared_experts={self.shared_experts} tokens={self.tokens}",
                rule="shared experts are at least 0, and see every token, so they go with moe and flat tokens",
                fix="compute shared experts as a layer of their own, or pass the tokens flat",
            )
        if self.tokens != "flat" and not moe:
            raise ConfigError(
                f"Problem({self.op})",
                seen=f"tokens={self.tokens!r}",
                rule="rows are sorted by expert for moe only",
                fix="leave tokens out",
            )

    @property
    def stacked(self) -> int:
        """Experts in the stacks of this rank: the routed ones, then the shared ones."""
        return self.experts + self.shared_experts

    @property
    def features(self) -> frozenset[str]:
        """Everything that a backend must list in its own ``features`` before it is asked; see `missing_words`."""
        words = {self.op, f"dtype:{self.dtype}", *self.requires}
        if self.bias:
            words.add("bias")
        # `auto` is no demand: whatever a backend does then, it says in its answer.
        if self.activation not in ("none", "auto"):
            words.add(f"activation:{self.activation}")
        if self.format != PLAIN:
            kind = get(self.format)
            if kind.scales_input:
                words.add("input-scale")
            if kind.of_weight != PLAIN:
                words.add(f"format:{kind.of_weight}")
        if self.shared_experts:
            words.add("shared-experts")
        if self.tokens != "flat":
            words.add(f"tokens:{self.tokens}")
        if self.op == "moe":
            words |= self.gate.words
            if self.total_experts > self.experts:
                words.add("expert-map")
        return frozenset(words)

    def __str__(self) -> str:
        text = f"{self.op} m={'any' if self.m is None else self.m} n={self.n} k={self.k}"
        if self.op == "moe":
            text += f" experts={self.experts}/{self.total_experts} top_k={self.top_k}"
        if self.activation == "auto":
            text += " activation=auto"
        if self.options:
            text += f" options({self.options})"
        extra = "".join(f" {word}" for word in sorted(self.features - {self.op, f"dtype:{self.dtype}"}))
        return f"{text} {self.dtype}{extra} on {self.device}"


def missing_words(problem: Problem, features: frozenset[str]) -> list[str]:
    """Return the words of the problem that a backend with these features does not know.

    A feature stands for every op, or for one: ``activation:mxfp4`` or ``moe:activation:mxfp4``.
    """
    return sorted(
        word for word in problem.features if word not in features and f"{problem.op}:{word}" not in features
    )


def input_format(format: str, activation: str) -> str:
    """Return what the input of a product is quantised to: ``none``, ``fp8``, or the name of a format.

    The word ``mxfp4`` means one level of scales, but two where the weight has two, because a device that multiplies
    two levels wants them on both sides.

    Args:
        format: of the weights.
        activation: ``none``, ``mxfp4``, ``mxfp8`` or ``fp8``: of `Numerics`, where the problem says ``auto``.
    """
    if format == PLAIN:
        return activation
    # Calls ask this, also while they are compiled, and what looks for packages cannot be.
    known = _INPUTS.get((format, activation))
    return get(format).input_format(activation) if known is None else known


_INPUTS: dict[tuple[str, str], str] = {}
"""What formats say of the inputs of products, for the formats that a problem had: by format and activation."""


def _check_word(name: str, word: str, words: Sequence[str]) -> None:
    if word not in words:
        raise ConfigError(
            "Problem",
            seen=f"{name}={word!r}",
            rule=f"{name} is one of {', '.join(words)}",
            fix=did_you_mean(str(word), words, "use one of these words"),
        )


__all__ = [
    "DTYPES",
    "GPT_OSS_SWIGLU",
    "PLAIN",
    "SILU",
    "Activation",
    "Gate",
    "Matrix",
    "Op",
    "Problem",
    "Tokens",
    "input_format",
    "missing_words",
]
