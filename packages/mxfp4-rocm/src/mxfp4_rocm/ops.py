"""The operators ``mxfp4_rocm::linear``, ``::moe`` and ``::quantize``."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from mxfp4_core import quantize as quantize_core
from mxfp4_core.arithmetic import quantize_triton
from mxfp4_core.backend import Gate, Operators
from mxfp4_rocm import dense, experts

_OPERATORS: Final = Operators("mxfp4_rocm")
_LINEAR = "(Tensor x, Tensor codes, Tensor scales, Tensor? bias, str way, bool by_aiter) -> Tensor"


def _linear_fake(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], codes.shape[0]))


linear = _OPERATORS.define("linear", _LINEAR, _linear_fake)(dense.linear)

_MOE = (
    "(Tensor x, Tensor gate_up, Tensor gate_up_scales, Tensor? gate_up_bias, Tensor down, Tensor down_scales, "
    "Tensor? down_bias, Tensor topk_ids, Tensor topk_weights, Tensor? expert_map, int shared, float alpha, "
    "float? limit, float up_offset, bool interleaved, str function, bool gated, str way, bool by_aiter) -> Tensor"
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
    shared: int,
    alpha: float,
    limit: float | None,
    up_offset: float,
    interleaved: bool,
    function: str,
    gated: bool,
    way: str,
    by_aiter: bool,
) -> Tensor:
    """Gather the arguments; see `experts.moe`."""
    return experts.moe(
        x,
        experts.Stack(gate_up, gate_up_scales, gate_up_bias),
        experts.Stack(down, down_scales, down_bias),
        topk_ids,
        topk_weights,
        expert_map,
        shared,
        Gate.of(alpha, limit, up_offset, interleaved, function, gated),
        way,
        by_aiter,
    )


@_OPERATORS.define("quantize", "(Tensor weight, str profile) -> (Tensor, Tensor)", Operators.pair)
def quantize(weight: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    """Quantise with the core's kernel on the GPU, with its reference on a CPU that emulates one."""
    if weight.is_cuda:
        return quantize_triton(weight, profile)
    made = quantize_core(weight, profile=profile, nonfinite="nan")
    return made.codes, made.scales


__all__ = ["linear", "moe", "quantize"]
