"""The operators ``mxfp4_rocm::linear``, ``::moe`` and ``::quantize``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from mxfp4_core import quantize as quantize_core
from mxfp4_core.arithmetic import quantize_triton
from mxfp4_core.errors import BackendError
from mxfp4_rocm import dense, experts

_LINEAR = "(Tensor x, Tensor codes, Tensor scales, Tensor? bias, str way, bool by_aiter) -> Tensor"


def _linear_fake(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], codes.shape[0]))


_MOE = (
    "(Tensor x, Tensor gate_up, Tensor gate_up_scales, Tensor? gate_up_bias, Tensor down, Tensor down_scales, "
    "Tensor? down_bias, Tensor topk_ids, Tensor topk_weights, Tensor? expert_map, int shared, float alpha, "
    "float? limit, float up_offset, bool interleaved, str way, bool by_aiter) -> Tensor"
)


def _moe(
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
        experts.Gated(alpha, limit, up_offset, interleaved),
        way,
        by_aiter,
    )


def _moe_fake(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


_QUANTIZE = "(Tensor weight, str profile) -> (Tensor, Tensor)"


def _quantize(weight: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    """Quantise with the core's kernel on the GPU, with its reference on a CPU that emulates one."""
    if weight.is_cuda:
        return quantize_triton(weight, profile)
    made = quantize_core(weight, profile=profile, nonfinite="nan")
    return made.codes, made.scales


def _quantize_fake(weight: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    *lead, k = weight.shape
    codes = weight.new_empty((*lead, k // 2), dtype=torch.uint8)
    return codes, weight.new_empty((*lead, k // 32), dtype=torch.uint8)


def _no_gradient(context: Any, *gradients: Tensor) -> None:
    raise BackendError(
        "a gradient through an MXFP4 weight",
        seen="backward() reached an operator of the backend 'rocm'",
        rule="MXFP4 weights are frozen, and this backend computes no gradient of its input",
        fix="run under torch.no_grad(), or train the BF16 model and quantise the result",
    )


# `torch.library.custom_op` would wrap each call in checks of aliases and modes, which take 0.1 ms of the host's time.
_LIBRARY: Final = torch.library.Library("mxfp4_rocm", "DEF")


def _operator(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mxfp4_rocm::{name}", fake)
    return getattr(torch.ops.mxfp4_rocm, name).default


linear = _operator("linear", _LINEAR, dense.linear, _linear_fake)
moe = _operator("moe", _MOE, _moe, _moe_fake)
quantize = _operator("quantize", _QUANTIZE, _quantize, _quantize_fake)
for _name in ("linear", "moe"):
    torch.library.register_autograd(f"mxfp4_rocm::{_name}", _no_gradient)

__all__ = ["linear", "moe", "quantize"]
