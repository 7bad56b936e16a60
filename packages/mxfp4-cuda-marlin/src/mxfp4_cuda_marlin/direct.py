"""Calls without torch's dispatcher: weights are checked once, and a call launches what was prepared for its size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mxfp4_core.backend import Packed, Problem, Routes
from mxfp4_cuda_marlin import compute
from mxfp4_cuda_marlin.checks import (
    Weight,
    check_limit,
    check_linear_weight,
    check_moe_weights,
    has_small_scales,
    sizes,
)
from mxfp4_cuda_marlin.kernels import load
from mxfp4_cuda_marlin.kernels.launch import stream_of
from mxfp4_cuda_marlin.launches import addresses
from mxfp4_cuda_marlin.plans import LinearPlan, linear_plan


def linear(packed: Packed) -> Callable[[Tensor], Tensor]:
    """Return a function of x ``[..., k]``, contiguous and of the dtype and device of the problem, to ``[..., n]``.

    Raises:
        FormatError, ShapeError, BackendError: the weight is none that ``ops.linear`` takes.
    """
    weight = weight_of(packed)
    check_linear_weight(weight)
    (n, k), device, small_scales = sizes(weight[0]), weight[0].device, has_small_scales(weight[1])
    step, many, index = compute.linear_step(n), load.multiprocessors(device), device.index
    last: tuple[int, LinearPlan] | None = None

    def run(x: Tensor) -> Tensor:
        nonlocal last
        m, start = x.numel() // k, x.data_ptr()
        if m > step or start % 16 or torch.cuda.current_device() != index:
            return compute.linear(x.view(-1, k), *weight).view(*x.shape[:-1], n)
        out = x.new_empty((m, n) if x.ndim == 2 else (*x.shape[:-1], n))
        known = last
        if known is None or known[0] != m:  # most calls are like the one before
            variant = compute.linear_variant(m, n, k, many)
            known = last = m, linear_plan(device, m, n, k, small_scales, variant)
        known[1](stream_of(device), start, out.data_ptr(), addresses(weight))
        return out

    return run


def moe(gate_up: Packed, down: Packed, problem: Problem) -> Callable[[Tensor, Routes], Tensor]:
    """Return a function of x ``[m, k]`` and routes as backends get them, to ``[m, k]``.

    Raises:
        FormatError, ShapeError, BackendError, ConfigError: weights or a gate that ``ops.moe`` does not take.
    """
    up, low = weight_of(gate_up), weight_of(down)
    check_moe_weights(up, low, problem.top_k)
    check_limit(problem.gate.limit)
    gate = problem.gate.alpha, problem.gate.limit, problem.gate.up_offset
    form, device = compute.gate_of(*gate), up[0].device
    step = compute.moe_step(up, low, problem.top_k)

    def run(x: Tensor, routes: Routes) -> Tensor:
        ids, weights, expert_map, _ = routes
        if x.shape[0] > step or x.data_ptr() % 16 or torch.cuda.current_device() != device.index:
            return compute.moe(x, up, low, ids, weights, expert_map, gate)
        out = torch.empty_like(x)
        compute.moe_into(x, up, low, ids, weights, expert_map, form, out)
        return out

    return run


def weight_of(packed: Packed) -> Weight:
    """Return codes, scales and bias."""
    tensors = packed.tensors
    return tensors["codes"], tensors["scales"], tensors.get("bias")


__all__ = ["linear", "moe", "weight_of"]
