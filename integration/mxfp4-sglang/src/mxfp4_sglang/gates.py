"""What SGLang says of the activation of experts, in the words of the core."""

from __future__ import annotations

from typing import Any, Final

from mxfp4_core.backend import Gate
from mxfp4_core.errors import ConfigError

_GATED: Final = {
    "silu": Gate(),
    "gelu": Gate(function="gelu"),
    "gelu_tanh": Gate(function="gelu_tanh"),
}
_UNGATED: Final = {
    "silu": Gate(gated=False),
    "gelu": Gate(function="gelu", gated=False),
    "relu2": Gate(function="relu2", gated=False),
}
"""What SGLang's Triton runner computes, in its words: GELU is by erf there."""


def gate_of(config: Any, name: str) -> Gate:
    """Return the activation of the experts of one layer.

    Args:
        config: SGLang's ``MoeRunnerConfig``: ``activation`` is a function, which ``is_gated`` or not; with SiLU
            ``gemm1_alpha`` is the factor in the sigmoid, which comes with 1 added to
            up, or ``gemm1_beta``; ``gemm1_clamp_limit`` goes with it, ``swiglu_limit`` without.
        name: of the layer.

    Raises:
        ConfigError: they do something else than an activation that the core describes between two weights.
    """
    gates = _GATED if config.is_gated else _UNGATED
    clamped = config.gemm1_alpha is not None or config.gemm1_clamp_limit or config.swiglu_limit
    refused = {
        f"activation {config.activation!r}": config.activation not in gates,
        "experts without a gate": not config.is_gated and config.activation not in gates,
        "a factor or a limit of another function than SiLU with a gate": bool(clamped)
        and (config.activation != "silu" or not config.is_gated),
        "weights of the router on the input": config.apply_router_weight_on_input,
        "results of the experts one by one": config.no_combine,
    }
    if seen := [words for words, found in refused.items() if found]:
        raise ConfigError(
            f"{name} cannot be MXFP4 experts",
            seen=", ".join(seen),
            rule=f"between two weights they have {', '.join(_GATED)} with a gate, or {', '.join(_UNGATED)} without "
            "one, and the weights of the router on their output",
            fix=f"keep them in high precision: ignore=[{name!r}]",
        )
    if not clamped:
        return gates[config.activation]
    if config.gemm1_alpha is None:
        limit = config.swiglu_limit
        return Gate(limit=None if not limit else float(limit))
    offset = getattr(config, "gemm1_beta", None)  # 0.5.17 has none
    limit = config.gemm1_clamp_limit
    return Gate(
        float(config.gemm1_alpha),
        None if limit is None else float(limit),
        1.0 if offset is None else float(offset),
        bool(config.gate_up_interleaved),
    )


__all__ = ["gate_of"]
