"""Activations of experts: vLLM's words in those of the core."""

from __future__ import annotations

from typing import Any

from mxfp4_core.backend import GPT_OSS_SWIGLU, Gate
from mxfp4_core.errors import ConfigError


def gate_of(layer: Any, name: str) -> Gate:
    """Return the activation of vLLM's experts in the words of the core.

    Args:
        layer: ``RoutedExperts`` of vLLM, with its activation.
        name: of the layer, for the error.

    Raises:
        ConfigError: it is none that the core describes, or weights of the router go to the input.
    """
    activation = str(getattr(layer.activation, "value", layer.activation))
    limit = getattr(layer, "swiglu_limit", None)
    gates = {
        "silu": Gate(limit=float(limit) if limit else None),
        "swigluoai": GPT_OSS_SWIGLU,
        "swigluoai_uninterleave": Gate(
            GPT_OSS_SWIGLU.alpha, GPT_OSS_SWIGLU.limit, GPT_OSS_SWIGLU.up_offset, interleaved=False
        ),
        "gelu": Gate(function="gelu"),
        "gelu_tanh": Gate(function="gelu_tanh"),
        "silu_no_mul": Gate(gated=False),
        "gelu_no_mul": Gate(function="gelu", gated=False),
        "gelu_tanh_no_mul": Gate(function="gelu_tanh", gated=False),
        "relu2_no_mul": Gate(function="relu2", gated=False),
    }
    limited = bool(limit) and activation not in ("silu", "swigluoai", "swigluoai_uninterleave")
    if activation not in gates or layer.apply_router_weight_on_input or limited:
        seen = f"activation {activation!r}" + (f" with a limit of {limit}" if limited else "")
        if activation in gates and not limited:
            seen = "weights of the router on the input"
        raise ConfigError(
            f"{name} cannot be MXFP4 experts",
            seen=seen,
            rule=f"they have one of the activations {', '.join(gates)}, and weigh their output",
            fix=f"keep them in high precision: ignore=[{name!r}]",
        )
    return gates[activation]


__all__ = ["gate_of"]
