"""What SGLang says of the activation of experts, in the words of the core."""

from __future__ import annotations

from typing import Any

from mxfp4_core.backend import Gate
from mxfp4_core.errors import ConfigError


def gate_of(config: Any, name: str) -> Gate:
    """Return the gated activation of the experts of one layer.

    Args:
        config: SGLang's ``MoeRunnerConfig``: ``gemm1_alpha`` is the factor in the sigmoid, which comes with 1 added to
            up, or ``gemm1_beta``; ``gemm1_clamp_limit`` goes with it, ``swiglu_limit`` without.
        name: of the layer.

    Raises:
        ConfigError: they do something else than a gated activation between two weights.
    """
    refused = {
        f"activation {config.activation!r}": config.activation != "silu",
        "experts without a gate": not config.is_gated,
        "weights of the router on the input": config.apply_router_weight_on_input,
        "results of the experts one by one": config.no_combine,
    }
    if seen := [words for words, found in refused.items() if found]:
        raise ConfigError(
            f"{name} cannot be MXFP4 experts",
            seen=", ".join(seen),
            rule="they have a gated SiLU between two weights, and the weights of the router on their output",
            fix=f"keep them in high precision: ignore=[{name!r}]",
        )
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
