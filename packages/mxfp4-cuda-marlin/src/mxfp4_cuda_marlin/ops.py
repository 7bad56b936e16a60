"""The operators ``mxfp4_cuda_marlin::linear``, ``::moe`` and ``::quantize``."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from mxfp4_core.backend import Operators
from mxfp4_cuda_marlin import compute
from mxfp4_cuda_marlin import quantize as quantizer
from mxfp4_cuda_marlin.checks import sizes

_OPERATORS: Final = Operators("mxfp4_cuda_marlin")
_LINEAR = "(Tensor x, Tensor codes, Tensor scales, Tensor? bias) -> Tensor"


def _linear_fake(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], sizes(codes)[0]))


@_OPERATORS.define("linear", _LINEAR, _linear_fake)
def linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``x @ weight.T + bias``.

    Args:
        x: bfloat16 [m, k], contiguous, m >= 1, k a multiple of 64.
        codes: uint8 [n/64, k/64, 2048] in ``Sm90Layout``.
        scales: uint8 [n/64, k/64, 128] or [n/64, k/64, 64, 2].
        bias: bfloat16 [n] or None.

    Returns:
        bfloat16 [m, n].

    Raises:
        BackendError: not an SM90 device, or NVRTC is missing.
        FormatError: dtypes, devices or strides other than these.
        ShapeError: sizes that do not belong together.
    """
    return compute.linear(x, codes, scales, bias)


_MOE = (
    "(Tensor x, Tensor gate_up, Tensor gate_up_scales, Tensor? gate_up_bias, Tensor down, Tensor down_scales, "
    "Tensor? down_bias, Tensor topk_ids, Tensor topk_weights, Tensor? expert_map, float alpha, float? limit, "
    "float up_offset) -> Tensor"
)


@_OPERATORS.define("moe", _MOE, Operators.like_x)
def moe(
    x: Tensor,
    gate_up: Tensor,
    gate_up_scales: Tensor,
    gate_up_bias: Tensor | None,
    down: Tensor,
    down_scales: Tensor,
    down_bias: Tensor | None,
    topk_ids: Tensor,
    topk_weights: Tensor,
    expert_map: Tensor | None,
    alpha: float,
    limit: float | None,
    up_offset: float,
) -> Tensor:
    """Compute the sum over the chosen experts of ``topk_weight * expert(x)``.

    Args:
        x: bfloat16 [m, k], contiguous, m >= 1, k a multiple of 64.
        gate_up: uint8 [experts, 2n/64, k/64, 2048] in ``Sm90Layout`` with gate and up rows.
        gate_up_scales: uint8 [experts, 2n/64, k/64, 128] or [..., 64, 2].
        gate_up_bias: bfloat16 [experts, 2n] in the order of the packed rows, or None.
        down: uint8 [experts, k/64, n/64, 2048] in ``Sm90Layout``.
        down_scales: uint8 [experts, k/64, n/64, 128] or [..., 64, 2].
        down_bias: bfloat16 [experts, k] or None.
        topk_ids: int32 [m, top_k]; what is no expert is an empty slot.
        topk_weights: float32 [m, top_k], applied to the output of the experts.
        expert_map: int32 [total_experts] from ids to indices here, or None.
        alpha: see ``mxfp4_core.backend.Gate``, as the next two.
        limit: clamp or None.
        up_offset: added to up.

    Returns:
        bfloat16 [m, k].

    Raises:
        BackendError, FormatError, ShapeError: as ``linear``.
        ConfigError: a limit below 0.
    """
    return compute.moe(
        x,
        (gate_up, gate_up_scales, gate_up_bias),
        (down, down_scales, down_bias),
        topk_ids,
        topk_weights,
        expert_map,
        (alpha, limit, up_offset),
    )


@_OPERATORS.define("quantize", "(Tensor weight, str profile) -> (Tensor, Tensor)", Operators.pair)
def quantize(weight: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    """Quantise on the GPU; see ``mxfp4_cuda_marlin.quantize.quantize``."""
    return quantizer.quantize(weight, profile)


__all__ = ["linear", "moe", "quantize"]
