"""Large sizes: where a kernel changes its path or its integers end, results are still right and not zeros."""

from __future__ import annotations

import pytest
import torch

from mxfp4_core.backend import Activation, Backend, Device, Problem, calls, numerics_for
from mxfp4_core.testing import judge
from mxfp4_core.testing.fixtures import Fixtures, takes
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_biases, random_routes, random_weight, random_x

LINEAR = {
    "many tokens": (1100, 64, 128),
    "more tokens than 16 bits": (66000, 32, 32),
    "long rows": (5, 48, 4416),
    "longer rows than a hidden size": (3, 32, 18464),
    "many features": (3, 4224, 64),
    "more features than 16 bits": (2, 66048, 32),
}
"""m, n, k: each beyond a size at which kernels choose another way."""

# experts, top_k, m, n, k
MOE = {
    "many tokens": (4, 2, 1100, 48, 64),
    "many tokens for one expert": (2, 1, 2100, 32, 32),
    "sixteen experts": (16, 2, 70, 32, 64),
    "128 experts": (128, 8, 300, 32, 32),
    "top-k over eight": (16, 10, 20, 32, 64),
    "top-k of 32": (64, 32, 9, 32, 32),
    "a large hidden size": (2, 1, 6, 32, 4416),
    "a large intermediate size": (2, 2, 6, 4416, 64),
}


class LargeSuite(Fixtures):
    """One size at a time is large, so that the tests stay short."""

    @pytest.mark.parametrize("word", ["none", "mxfp4"])
    @pytest.mark.parametrize("sizes", LINEAR.values(), ids=LINEAR)
    def test_large_linear(
        self,
        backend: Backend,
        here: Device,
        device: torch.device,
        sizes: tuple[int, int, int],
        word: Activation,
    ) -> None:
        """Every element is right, the last ones too, with a bias where the backend takes one."""
        m, n, k = sizes
        problem = Problem(
            op="linear", n=n, k=k, activation=word, bias=with_bias(backend, "linear"), device=here
        )
        if not takes(backend, problem):
            return
        weight, x, [bias] = random_weight(n, k, seed=n + k), random_x(m, k), random_biases(problem)
        packed = calls.pack(backend, problem, weight.to(device), None if bias is None else bias.to(device))
        got = calls.linear(backend, x.to(device), packed, problem)
        judge.linear(x, weight, bias, numerics_for(backend, problem), word).check(got, f"m={m} n={n} k={k}")

    @pytest.mark.parametrize("word", ["none", "mxfp4"])
    @pytest.mark.parametrize("sizes", MOE.values(), ids=MOE)
    def test_large_moe(
        self,
        backend: Backend,
        here: Device,
        device: torch.device,
        sizes: tuple[int, int, int, int, int],
        word: Activation,
    ) -> None:
        """Every token, every expert and every slot counts."""
        experts, top_k, m, n, k = sizes
        bias = with_bias(backend, "moe")
        problem = Problem(
            op="moe", n=n, k=k, experts=experts, top_k=top_k, activation=word, bias=bias, device=here
        )
        if not takes(backend, problem):
            return
        layer, x, routes = (
            Layer.build(backend, device, problem),
            random_x(m, k),
            random_routes(m, experts, top_k),
        )
        assert routes[0].unique().numel() == experts, "an expert has no token"
        layer.answer(backend, x, *routes).check(layer.call(backend, x, *routes), f"{sizes}")


def with_bias(backend: Backend, op: str) -> bool:
    """Say whether the backend takes biases of an op."""
    return not {"bias", f"{op}:bias"}.isdisjoint(backend.features)
