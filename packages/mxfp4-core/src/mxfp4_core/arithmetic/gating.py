"""The activation of experts, computed: what every backend does between its matmuls that has no kernel for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from mxfp4_core.arithmetic.gate import Gate


def _relu2(x: Tensor) -> Tensor:
    return functional.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


_FUNCTIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": functional.relu,
    "relu2": _relu2,
}


def apply_gate(both: Tensor, gate: Gate) -> Tensor:
    """Return the hidden state ``[..., n]`` for the product with the first weight of experts.

    Args:
        both: float ``[..., 2n]``, with gate and up in the order of the gate; ``[..., n]`` without one.
        gate: the activation.

    Returns:
        Of the dtype of ``both``, in which all of it is computed.
    """
    if not gate.gated:
        return (
            both * torch.sigmoid(gate.alpha * both)
            if gate.function == "silu"
            else _FUNCTIONS[gate.function](both)
        )
    first, up = (both[..., 0::2], both[..., 1::2]) if gate.interleaved else both.chunk(2, dim=-1)
    if gate.limit is not None:
        first, up = first.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
    if gate.function == "silu":
        return (up + gate.up_offset) * first * torch.sigmoid(gate.alpha * first)
    return (up + gate.up_offset) * _FUNCTIONS[gate.function](first)


__all__ = ["apply_gate"]
