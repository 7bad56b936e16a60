"""Calls that nobody traces may go straight to a backend's kernels.

torch's dispatcher, and checks of what was checked when the module was prepared, cost the host more than a launch does.
A backend that offers ``direct_linear`` or ``direct_moe`` gets such calls through them; its results are the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mxfp4_core.backend import calls
from mxfp4_core.backend.problem import Problem
from mxfp4_core.backend.protocol import Backend, Packed
from mxfp4_core.backend.routes import Routes
from mxfp4_core.backend.routing import checked


def is_plain(x: Tensor) -> bool:
    """Return whether nobody but us sees what is done with a tensor: no tracer, mode or class. Compilers ask before."""
    return type(x) is Tensor and not torch._C._len_torch_dispatch_stack() and not torch._C._is_tracing()


def direct_linear(backend: Backend, weight: Packed, problem: Problem) -> Callable[[Tensor], Tensor] | None:
    """Return `calls.linear` for one weight and plain tensors, or None where the backend has no such way.

    Args:
        backend: who packed the weight.
        weight: from `calls.pack`; its tensors may change their memory, and keep device, dtype and shape.
        problem: the problem it was packed for.
    """
    offered = getattr(backend, "direct_linear", None)
    run = None if offered is None else offered(weight, problem)
    if run is None or weight.shape != (
        problem.n,
        problem.k,
    ):  # padded sizes are padded and cropped by `calls`
        return None
    dtype, device, k = getattr(torch, problem.dtype), _device(weight), problem.k

    def call(x: Tensor) -> Tensor:
        if x.dtype is dtype and x.device == device and x.ndim and x.shape[-1] == k and x.numel():
            out: Tensor = run(x if x.is_contiguous() else x.contiguous())
            return out
        return calls.linear(backend, x, weight, problem)  # which says what is wrong, or takes nothing

    return call


def direct_moe(
    backend: Backend, gate_up: Packed, down: Packed, problem: Problem
) -> Callable[[Tensor, Routes], Tensor] | None:
    """Return `calls.moe` for one layer and plain tensors, or None where the backend has no such way.

    Args:
        backend: who packed the weights.
        gate_up: from `calls.pack`, as ``weight`` of `direct_linear`.
        down: likewise.
        problem: the problem they were packed for.
    """
    offered = getattr(backend, "direct_moe", None)
    run = None if offered is None or problem.tokens != "flat" else offered(gate_up, down, problem)
    if run is None or gate_up.shape[-1] != problem.k:
        return None
    dtype, device = getattr(torch, problem.dtype), _device(gate_up)

    def call(x: Tensor, routes: Routes) -> Tensor:
        if x.dtype is dtype and x.device == device and x.shape[-1:] == (problem.k,) and x.numel():
            rows = (x if x.is_contiguous() else x.contiguous()).view(-1, problem.k)
            out: Tensor = run(rows, checked(routes, x, problem))
            return out.view(x.shape)
        return calls.moe(backend, x, gate_up, down, routes, problem)

    return call


def _device(packed: Packed) -> torch.device:
    return next(iter(packed.tensors.values())).device


__all__ = ["direct_linear", "direct_moe", "is_plain"]
