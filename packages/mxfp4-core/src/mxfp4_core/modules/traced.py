"""Calls of modules as compilers see them: one node of the graph, and few guards.

`torch.compile` checks before each call of what it made that all it had read is still so. Read plainly, a module's
problem, backend and layouts are thirty such guards, and those of all modules cost more time than a decode step takes on
the device. Here it reads one text of the module and its tensors; the rest is read when the graph is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mxfp4_core.backend import calls
from mxfp4_core.backend.routes import Routes
from mxfp4_core.modules.mixed import in_dtype
from mxfp4_core.modules.preparation import recall


def linear(x: Tensor, text: str, buffers: Mapping[str, Tensor | None]) -> Tensor:
    """Return what `Mxfp4Linear` gives for x without a gradient.

    Args:
        x: [..., k].
        text: by which the preparation of the module is known.
        buffers: of the module.
    """
    made: Tensor = _linear(x, text, *[buffers[name] for name in recall(text).buffers])
    return made


def moe(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    expert_map: Tensor | None,
    text: str,
    buffers: Mapping[str, Tensor | None],
) -> Tensor:
    """Return what `Mxfp4Experts` gives for x and weights without a gradient.

    Args:
        x: [..., k].
        ids: integers [..., top_k].
        weights: floats [..., top_k].
        expert_map: integers [total_experts] or None.
        text: by which the preparation of the module is known.
        buffers: of the module.
    """
    made: Tensor = _moe(x, ids, weights, expert_map, text, *[buffers[name] for name in recall(text).buffers])
    return made


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no annotation
def apart(call: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: Tensor) -> Tensor:
    """Return ``call(x, weights)``, which asks for numbers in tensors, and so is no part of a graph."""
    return call(x, weights)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # torch has no annotation
def _linear(x: Tensor, text: str, *tensors: Tensor) -> Tensor:
    how = recall(text)
    (weight,) = how.weights(tensors)

    def run(rows: Tensor) -> Tensor:
        return calls.linear(how.backend, rows, weight, how.problem)

    return in_dtype(run, x, how.problem.device, getattr(torch, how.problem.dtype))


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # torch has no annotation
def _moe(
    x: Tensor, ids: Tensor, weights: Tensor, expert_map: Tensor | None, text: str, *tensors: Tensor
) -> Tensor:
    how, routes = recall(text), Routes(ids, weights, expert_map)
    gate_up, down = how.weights(tensors)

    def run(rows: Tensor) -> Tensor:
        return calls.moe(how.backend, rows, gate_up, down, routes, how.problem)

    return in_dtype(run, x, how.problem.device, getattr(torch, how.problem.dtype), keep=True)


__all__ = ["apart", "linear", "moe"]
