"""Weights that a parametrization of torch changes for the length of a call."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mxfp4_core import quantize
from mxfp4_core.backend.protocol import Backend
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.errors import BackendError
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear
from mxfp4_core.testing import EmulatedBackend

E, N, K, TOP = 4, 32, 64, 2
REFERENCE = ReferenceBackend()
BACKENDS = pytest.mark.parametrize("backend", [REFERENCE, EmulatedBackend()], ids=["reference", "emulated"])


def experts(backend: Backend = REFERENCE) -> Mxfp4Experts:
    generator = torch.Generator().manual_seed(3)
    module = Mxfp4Experts(E, N, K, top_k=TOP)
    for matrix, shape in module.shapes.items():
        module.fill(matrix, quantize(torch.randn(shape, generator=generator)))
    return module.prepare(backend, dtype=torch.float32)


def assert_close(one: Tensor, other: Tensor) -> None:
    assert (one - other).norm() <= 1e-5 * other.norm()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shares = torch.rand(5, TOP, generator=generator)
    return (
        torch.randn(5, K, generator=generator),
        torch.tensor([[0, 1], [1, 3], [3, 0], [0, 3], [1, 0]]),
        shares,
    )


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


class Plus(nn.Module):
    def __init__(self, lhs: Tensor, rhs: Tensor) -> None:
        super().__init__()
        self.lhs, self.rhs, self.scaling = lhs, rhs, 0.5

    def forward(self, weight: Tensor) -> Tensor:
        return torch.baddbmm(weight, self.lhs, self.rhs, alpha=self.scaling)


def dense(module: Mxfp4Experts, up: Tensor, down: Tensor) -> Tensor:
    x, ids, shares = inputs()
    made = torch.zeros_like(x)
    for token in range(len(x)):
        for slot in range(TOP):
            expert = int(ids[token, slot])
            g, u = (up[expert] @ x[token]).chunk(2)
            made[token] += shares[token, slot] * (down[expert] @ (nn.functional.silu(g) * u))
    return made


def values(module: Mxfp4Experts) -> tuple[Tensor, Tensor]:
    return (
        module.canonical("gate_up").dequantize(torch.float32),
        module.canonical("down").dequantize(torch.float32),
    )


@BACKENDS
def test_any_parametrization_is_computed_with_and_goes_without_a_trace(backend: Backend) -> None:
    module = experts(backend)
    plain, buffers, kind = module(*inputs()), dict(module._buffers), type(module)
    up, down = values(module)
    parametrize.register_parametrization(module, "down_proj", Twice())
    assert_close(module(*inputs()), dense(module, up, down * 2))
    assert set(module.state_dict()) >= {"gate_up_proj", "gate_up_proj_scale"}
    parametrize.remove_parametrizations(module, "down_proj", leave_parametrized=False)
    assert type(module) is kind
    assert list(module._buffers) == list(buffers)
    assert all(module._buffers[name] is each for name, each in buffers.items())
    assert torch.equal(module(*inputs()), plain)


@BACKENDS
def test_factors_get_the_gradients_of_the_sum(backend: Backend) -> None:
    module = experts(backend)
    up, down = values(module)
    generator = torch.Generator().manual_seed(5)
    factors = [
        torch.randn(shape, generator=generator).requires_grad_() for shape in ((E, 2 * N, 3), (E, 3, K))
    ]
    for weight in ("gate_up_proj",):
        parametrize.register_parametrization(module, weight, Plus(*factors))
    x, ids, shares = inputs()
    given = [x.requires_grad_(), shares.requires_grad_()]
    found = module(given[0], ids, given[1])
    ours = torch.autograd.grad(found.square().sum(), [*given, *factors])

    changed, made = up + 0.5 * factors[0] @ factors[1], torch.zeros_like(x)
    for token in range(len(x)):
        for slot in range(TOP):
            expert = int(ids[token, slot])
            g, u = (changed[expert] @ given[0][token]).chunk(2)
            row = given[1][token, slot] * (down[expert] @ (nn.functional.silu(g) * u))
            made = made.index_add(0, torch.tensor([token]), row[None])
    theirs = torch.autograd.grad(made.square().sum(), [*given, *factors])
    assert_close(found, made)
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


def test_a_linear_takes_one_and_its_gradient() -> None:
    module = Mxfp4Linear.from_weight(quantize(torch.randn(N, K, generator=torch.Generator().manual_seed(6))))
    module.prepare(REFERENCE, dtype=torch.float32)
    x = inputs()[0].requires_grad_()
    want = module(x) * 2
    parametrize.register_parametrization(module, "weight", Twice())
    found = module(x)
    assert_close(found, want)
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert_close(grad, 2 * module.canonical("weight").dequantize(torch.float32).sum(0).expand(5, K))
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    assert_close(module(x) * 2, want)


def test_a_weight_that_processes_share_takes_none() -> None:
    module: Any = experts()
    module.whole = MappingProxyType({"down": (E, K, 2 * N)})
    with pytest.raises(BackendError, match="processes share"):
        parametrize.register_parametrization(module, "down_proj", nn.Identity())
