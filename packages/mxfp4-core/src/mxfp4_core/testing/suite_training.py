"""Training on top of frozen weights: gradients of what goes into a module, autocast, compilation with gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import pytest
import torch
from torch import Tensor

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.backend import Backend, Device, Matrix, Problem
from mxfp4_core.modules import Mxfp4Module
from mxfp4_core.testing.fixtures import Fixtures, takes
from mxfp4_core.testing.samples import had_back
from mxfp4_core.testing.suite_module import KINDS, build, inputs, problem_of

_ROUNDINGS = 4 * 2.0**-9
"""bfloat16 rounds the gradients of the result, of the hidden state and of both of its halves, and the result."""


def exact(
    problem: Problem, module: Mxfp4Module, stored: Mapping[Matrix, MxTensor], arguments: tuple[Tensor, ...]
) -> Tensor:
    """Compute the problem in float64 on the CPU with torch's own operators, so that autograd differentiates it."""
    weights, biases = {}, {}
    for matrix, weight in stored.items():
        values = weight.dequantize(torch.float32).double()
        given = (weight.parts[p.name] for p in weight.format.parts if p.operand == "input")
        scale = next(given, None)
        weights[matrix] = values if scale is None else values * scale[: values.shape[-1]].double()
        bias = module.biases.get(matrix)
        biases[matrix] = 0 if bias is None else bias.cpu().double()
    x = arguments[0]
    if problem.op == "linear":
        return x @ weights["weight"].T + biases["weight"]
    _, ids, share = arguments
    rows = []
    for token, experts in enumerate(ids.tolist()):
        total = torch.zeros_like(x[token])
        for slot, e in enumerate(experts):
            both = weights["gate_up"][e] @ x[token] + cast(Tensor, biases["gate_up"])[e]
            gate, up = both.chunk(2)
            hidden = gate * torch.sigmoid(gate) * up
            total = total + share[token, slot] * (
                weights["down"][e] @ hidden + cast(Tensor, biases["down"])[e]
            )
        rows.append(total)
    return torch.stack(rows)


def leaves(arguments: tuple[Tensor, ...], *, double: bool = False) -> tuple[Tensor, ...]:
    """Return copies of the arguments; floats ask for a gradient, and are float64 on the CPU if ``double``."""
    copies = (each.detach().clone() for each in arguments)
    return tuple(
        (each.cpu().double() if double else each).requires_grad_()
        if each.is_floating_point()
        else each.cpu()
        if double
        else each
        for each in copies
    )


def raw(part: Tensor) -> Tensor:
    """Return the bytes of a part, which torch can compare."""
    return part.view(torch.uint8) if part.dtype.itemsize == 1 else part


class TrainingSuite(Fixtures):
    """``Mxfp4Linear`` and ``Mxfp4Experts`` below adapters that are trained."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_module_gradients(self, backend: Backend, here: Device, device: torch.device, kind: str) -> None:
        """Gradients of x, and of the router's weights, are those of the dequantised weights."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem):
            return
        module = build(problem, device)
        # Before a layout has the bytes; on another device they are a copy, on this one they are cloned.
        before = {matrix: copy.deepcopy(module.canonical(matrix).to("cpu")) for matrix in module.matrices}
        module.prepare(backend)
        ours, wide = leaves(inputs(problem, device)), leaves(inputs(problem, device), double=True)
        out = module(*ours)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out.dtype)
        out.backward(grad.to(device))
        exact(problem, module, before, wide).backward(grad.double())
        for mine, right in zip(ours, wide, strict=True):
            if not right.requires_grad:
                continue
            assert mine.grad is not None and mine.grad.dtype == mine.dtype and right.grad is not None
            error = (mine.grad.cpu().double() - right.grad).norm() / right.grad.norm()
            assert error < _ROUNDINGS, f"relative error {error:.2e}"
        for matrix, weight in before.items():
            after = module.canonical(matrix).to("cpu").parts
            for name, part in weight.parts.items():
                assert torch.equal(raw(had_back(backend, name, part)), raw(after[name])), (
                    "the weights changed"
                )

    @pytest.mark.parametrize("kind", ["linear", "moe"])
    def test_module_gradients_of_no_tokens(
        self, backend: Backend, here: Device, device: torch.device, kind: str
    ) -> None:
        """A call without tokens gives gradients without elements."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem):
            return
        given = leaves(inputs(problem, device, 0))
        build(problem, device).prepare(backend)(*given).sum().backward()
        assert all(
            each.grad is not None and each.grad.shape == each.shape for each in given if each.requires_grad
        )

    # torch.compile imports modules of torch that use what torch has deprecated.
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_module_gradients_compile(self, backend: Backend, here: Device, device: torch.device) -> None:
        """A linear compiles whole with its gradient, without a graph for every number of tokens."""
        problem = problem_of(backend, "linear", here)
        if not takes(backend, problem):
            return
        module = build(problem, device).prepare(backend)
        torch.compiler.reset()
        counters = torch._dynamo.utils.counters
        counters.clear()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for m in (9, 12, 5, 7):
            (one,), (other,) = leaves(inputs(problem, device, m)), leaves(inputs(problem, device, m))
            compiled(one).sum().backward()
            module(other).sum().backward()
            assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
        assert counters["stats"]["unique_graphs"] <= 2, "a graph for every number of tokens"

    @pytest.mark.parametrize("kind", ["linear", "moe"])
    @pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
    def test_module_under_autocast(
        self, backend: Backend, here: Device, device: torch.device, kind: str, given: torch.dtype
    ) -> None:
        """Under autocast x may have any dtype; a linear gives that of autocast, as torch's does, experts that of x."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem):
            return
        module = build(problem, device).prepare(backend)
        x, *routes = inputs(problem, device)
        x = x.to(given).requires_grad_()
        want = module(x.detach().to(torch.bfloat16), *routes)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            out = module(x, *routes)
        assert out.dtype == (torch.bfloat16 if kind == "linear" else given)
        assert torch.equal(out.to(want.dtype), want)
        out.sum().backward()
        assert x.grad is not None and x.grad.dtype == given


__all__ = ["TrainingSuite"]
