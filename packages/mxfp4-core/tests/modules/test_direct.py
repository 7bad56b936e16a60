"""Calls past torch's dispatcher: taken by what nobody traces, always with the weights that the module has now."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mxfp4_core import quantize
from mxfp4_core.backend import Packed, Problem, Routes, calls
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear, Mxfp4Module
from mxfp4_core.testing import EmulatedBackend
from mxfp4_core.testing.samples import random_routes, random_x

N, K, E = 48, 96, 3
TAKEN: list[str] = []


class Counting(EmulatedBackend):
    """Notes what comes past the dispatcher."""

    def direct_linear(self, weight: Packed, problem: Problem) -> Callable[[Tensor], Tensor]:
        run = super().direct_linear(weight, problem)
        return lambda x: TAKEN.append("linear") or run(x)  # type: ignore[func-returns-value]

    def direct_moe(
        self, gate_up: Packed, down: Packed, problem: Problem
    ) -> Callable[[Tensor, Routes], Tensor]:
        run = super().direct_moe(gate_up, down, problem)
        return lambda x, routes: TAKEN.append("moe") or run(x, routes)  # type: ignore[func-returns-value]


class Watching(TorchDispatchMode):
    """Sees every operator, as tracers do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def nothing_taken() -> None:
    TAKEN.clear()


def linear(seed: int = 0, n: int = N, k: int = K) -> Mxfp4Linear:
    torch.manual_seed(seed)
    module = Mxfp4Linear.from_weight(quantize(torch.randn(n, k), tail="pad"), torch.randn(n).bfloat16())
    return module.prepare(Counting())


def experts(seed: int = 0) -> Mxfp4Experts:
    torch.manual_seed(seed)
    module = Mxfp4Experts(E, K, K, top_k=2)
    module.fill("gate_up", quantize(torch.randn(E, 2 * K, K)))
    module.fill("down", quantize(torch.randn(E, K, K)))
    return module.prepare(Counting())


def ordinary(module: Mxfp4Module, *inputs: Tensor) -> Tensor:
    with Watching():
        return module(*inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize("shape", [(1, K), (7, K), (2, 3, K), (K,)])
def test_a_linear_goes_past_the_dispatcher(shape: tuple[int, ...]) -> None:
    module, x = linear(), torch.randn(shape).bfloat16()
    got = module(x)
    assert TAKEN == ["linear"] and got.shape == (*shape[:-1], N)
    assert torch.equal(got, ordinary(module, x)) and TAKEN == ["linear"]


def test_strides_are_made_dense() -> None:
    module, x = linear(), random_x(K, 5).t()
    assert not x.is_contiguous() and torch.equal(module(x), module(x.contiguous()))
    assert TAKEN == ["linear"] * 2


def test_experts_go_past_the_dispatcher() -> None:
    module, x, routes = experts(), random_x(6, K), random_routes(6, E, 2)
    wide = routes[0].long(), routes[1].double()
    got = module(x.view(2, 3, K), *(each.view(2, 3, 2) for each in wide))
    assert TAKEN == ["moe"]
    assert torch.equal(got.view(6, K), ordinary(module, x, *routes)) and TAKEN == ["moe"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiler_sees_the_operator() -> None:
    module, x = linear(), random_x(5, K)
    torch.compiler.reset()
    with torch.no_grad():
        got = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    assert TAKEN == [] and torch.equal(got, module(x))


def test_a_gradient_and_autocast_are_as_ever() -> None:
    module, x = linear(), random_x(5, K).requires_grad_()
    module(x).sum().backward()
    weight = module.canonical("weight").dequantize(torch.float32)
    assert x.grad is not None and torch.allclose(
        x.grad.float(), weight.sum(0).expand(5, K), rtol=2e-2, atol=1e-2
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x.detach().float()), module(x.detach()))


@pytest.mark.parametrize(("n", "k"), [(10, K), (N, 70)])
def test_padded_sizes_go_the_ordinary_way(n: int, k: int) -> None:
    module, x = linear(n=n, k=k), random_x(5, k)
    assert module(x).shape == (5, n) and TAKEN == []


def test_what_is_wrong_is_said_as_ever() -> None:
    module = linear()
    with pytest.raises(ShapeError, match="k = 96"):
        module(random_x(5, 95))
    with pytest.raises(FormatError, match="prepared for bfloat16"):
        module(torch.zeros(5, K, dtype=torch.int32))
    assert module(random_x(5, K)[:0]).shape == (0, N) and TAKEN == []


@pytest.mark.parametrize("made", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_computes_with_its_own_weights(made: Callable[[Mxfp4Linear], Mxfp4Linear]) -> None:
    module, x = linear(), random_x(5, K)
    twin, before = made(module), module(x)
    twin.load_state_dict(linear(1).state_dict())
    assert torch.equal(module(x), before) and torch.equal(twin(x), linear(1)(x))


def test_a_refit_is_what_computes() -> None:
    module, x = linear(), random_x(5, K)
    module(x)
    module.load_state_dict(linear(1).state_dict())
    assert torch.equal(module(x), linear(1)(x)) and set(TAKEN) == {"linear"}


def test_other_tensors_in_the_place_of_buffers_are_noticed() -> None:
    module, other, x = linear(), linear(1), random_x(5, K)
    module(x)
    for name in module._buffers:
        module._buffers[name] = other._buffers[name]
    assert torch.equal(module(x), other(x)) and TAKEN == ["linear"] * 3


def test_a_backend_need_not_offer_it() -> None:
    module, x = linear(), random_x(5, K)
    want = module(x)

    class Plain(EmulatedBackend):
        direct_linear = direct_moe = None  # type: ignore[assignment]

    TAKEN.clear()
    assert torch.equal(module.prepare(Plain())(x), want) and TAKEN == []
    packed = calls.pack(Plain(), module.problem, module.canonical("weight"), module.bias)
    assert torch.equal(calls.linear(Plain(), x, packed, module.problem), want)
