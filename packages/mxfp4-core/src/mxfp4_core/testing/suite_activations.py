"""Quantised activations: x and the hidden state are quantised where a backend says so, by the rule that it names.

A block of x that holds a NaN or an infinity is NaN as a whole, as in a quantised weight, and so is every result that
its row feeds.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mxfp4_core import quantize
from mxfp4_core.backend import GPT_OSS_SWIGLU, SILU, Backend, Device, Gate, Problem, calls
from mxfp4_core.testing import judge
from mxfp4_core.testing.fixtures import Fixtures, numerics_of, takes
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_biases, random_routes, random_weight, random_x
from mxfp4_core.testing.suite_gates import gated

NOT_FINITE = [torch.nan, torch.inf, -torch.inf]


def rounded(x: Tensor, profile: str) -> Tensor:
    """Return x after a trip through MXFP4, in float64."""
    return quantize(x, profile=profile, nonfinite="nan").dequantize(torch.float64)


def experts(
    layer: Layer, x: Tensor, ids: Tensor, weights: Tensor, profile: str, steps: tuple[bool, bool]
) -> Tensor:
    """Compute a MoE layer in float64, with x and the hidden state quantised or not, as ``steps`` says."""
    form, wide = layer.problem.gate, rounded(x, profile) if steps[0] else x.double()
    gate_up, down = (weight.dequantize(torch.float64) for weight in layer.weights)
    out = torch.zeros_like(wide)
    for token, slot in itertools.product(range(ids.shape[0]), range(ids.shape[1])):
        expert = int(ids[token, slot])
        both = gate_up[expert] @ wide[token] + (
            0 if layer.biases[0] is None else layer.biases[0][expert].double()
        )
        gate, up = (both[0::2], both[1::2]) if form.interleaved else both.chunk(2)
        hidden = gated(gate, up, form)
        hidden = rounded(hidden.float()[None], profile)[0] if steps[1] else hidden
        result = down[expert] @ hidden + (0 if layer.biases[1] is None else layer.biases[1][expert].double())
        out[token] += weights[token, slot] * result
    return out


class ActivationSuite(Fixtures):
    """``activation:mxfp4``: what is quantised, and what is not."""

    @pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
    def test_linear_quantised_activations(
        self, backend: Backend, here: Device, device: torch.device, bias: bool
    ) -> None:
        """Where x is quantised too, it is by the profile that the backend names; the bias is added to the result."""
        problem = Problem(op="linear", n=96, k=288, activation="mxfp4", bias=bias, device=here)
        if not takes(backend, problem):
            return
        numerics, [values] = numerics_of(backend, problem), random_biases(problem)
        weight, x = random_weight(96, 288), random_x(33, 288)
        packed = calls.pack(
            backend, problem, weight.to(device), None if values is None else values.to(device)
        )
        got = calls.linear(backend, x.to(device), packed, problem)
        exact = rounded(x, numerics.activation_profile).bfloat16()
        judge.linear(exact, weight, values, numerics).check(got)

    @pytest.mark.parametrize("value", NOT_FINITE, ids=str)
    def test_linear_quantised_activations_that_are_not_finite(
        self, backend: Backend, here: Device, device: torch.device, value: float
    ) -> None:
        """The token is NaN in every feature, and no other token is."""
        problem = Problem(op="linear", n=64, k=128, activation="mxfp4", device=here)
        if not takes(backend, problem):
            return
        numerics = numerics_of(backend, problem)
        weight, x = random_weight(64, 128), random_x(9, 128)
        x[4, 77] = value
        got = calls.linear(backend, x.to(device), calls.pack(backend, problem, weight.to(device)), problem)
        assert bool(got[4].isnan().all()), f"a block of x with {value} gives finite results"
        exact = rounded(x, numerics.activation_profile).bfloat16()
        judge.linear(exact, weight, None, numerics).check(got)

    @pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
    @pytest.mark.parametrize(
        "form", [SILU, Gate(limit=10.0), GPT_OSS_SWIGLU], ids=["silu", "limit-10", "gpt-oss"]
    )
    def test_moe_quantised_activations(
        self, backend: Backend, here: Device, device: torch.device, form: Gate, bias: bool
    ) -> None:
        """Both x and the hidden state are quantised: the result is far nearer to that than to one of them alone.

        A hidden value near the middle of two codes may fall on either side, so element by element nothing can be said.
        """
        problem = Problem(
            op="moe", n=96, k=128, experts=4, top_k=2, activation="mxfp4", gate=form, bias=bias, device=here
        )
        if not takes(backend, problem):
            return
        layer, x, (ids, weights) = (
            Layer.build(backend, device, problem),
            random_x(24, 128),
            random_routes(24, 4, 2),
        )
        profile = numerics_of(backend, problem).activation_profile
        want = {
            (of_x, of_hidden): experts(layer, x, ids, weights, profile, (of_x, of_hidden))
            for of_x in (True, False)
            for of_hidden in (True, False)
        }
        got = layer.call(backend, x, ids, weights).cpu().double()
        distance = {steps: float((got - values).norm() / values.norm()) for steps, values in want.items()}
        right = distance.pop((True, True))
        nearest = min(distance, key=lambda steps: distance[steps])
        said = f"x {'is' if nearest[0] else 'is not'} quantised, hidden {'is' if nearest[1] else 'is not'}"
        assert right < distance[nearest] / 2.5, (
            f"off by {right:.3g} from a layer that quantises both, by {distance[nearest]:.3g} from one where {said}"
        )

    @pytest.mark.parametrize("value", NOT_FINITE, ids=str)
    def test_moe_quantised_activations_that_are_not_finite(
        self, backend: Backend, here: Device, device: torch.device, value: float
    ) -> None:
        """The token is NaN in every feature, and no other token is."""
        problem = Problem(op="moe", n=64, k=96, experts=4, top_k=2, activation="mxfp4", device=here)
        if not takes(backend, problem):
            return
        layer, x, routes = Layer.build(backend, device, problem), random_x(6, 96), random_routes(6, 4, 2)
        clean = layer.call(backend, x, *routes).cpu()
        x[3, 50] = value
        got = layer.call(backend, x, *routes).cpu()
        assert bool(got[3].isnan().all()), f"a block of x with {value} gives finite results"
        others = [token for token in range(6) if token != 3]
        assert torch.equal(got[others], clean[others]), "another token changes"
