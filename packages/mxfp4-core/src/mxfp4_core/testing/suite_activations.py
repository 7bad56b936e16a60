"""Quantised activations: x and the hidden state are quantised where a backend says so, by the rule that it names.

A block of x that holds a NaN or an infinity is NaN as a whole, as in a quantised weight, and so is every result that
its row feeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mxfp4_core.arithmetic import quantized
from mxfp4_core.backend import (
    GPT_OSS_SWIGLU,
    SILU,
    Activation,
    Backend,
    Device,
    Gate,
    Numerics,
    Problem,
    calls,
    numerics_for,
)
from mxfp4_core.testing import judge
from mxfp4_core.testing.fixtures import Fixtures, takes
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_biases, random_routes, random_weight, random_x
from mxfp4_core.testing.suite_gates import gated

WORDS: tuple[Activation, ...] = ("mxfp4", "mxfp8", "fp8", "auto")
NOT_FINITE = [torch.nan, torch.inf, -torch.inf]


@dataclass(frozen=True)
class Rounding:
    """How one MoE layer rounds: what is quantised, and to what the hidden state is rounded before."""

    x: bool = True
    hidden: bool = True
    first: torch.dtype = torch.float32

    def __str__(self) -> str:
        said = [
            f"{name} {'is' if done else 'is not'} quantised"
            for name, done in (("x", self.x), ("hidden", self.hidden))
        ]
        return ", ".join([*said, f"hidden was {self.first} before"])


def rounded(x: Tensor, numerics: Numerics) -> Tensor:
    """Return x as the backend multiplies it, in float32."""
    word = numerics.activation or "none"
    return quantized(x, word, profile=(numerics.activation_profile or None) if word == "mxfp4" else None)


def experts(
    layer: Layer, x: Tensor, routes: tuple[Tensor, Tensor], numerics: Numerics, how: Rounding
) -> Tensor:
    """Compute a MoE layer in float64 beside the roundings that are asked for."""
    form, (ids, weights) = layer.problem.gate, routes
    wide = rounded(x, numerics).double() if how.x else x.double()
    gate_up, down = (weight.dequantize(torch.float64) for weight in layer.weights)
    out = torch.zeros_like(wide)
    for expert in range(layer.problem.experts):
        tokens, slots = torch.where(ids == expert)
        first, second = (0.0 if bias is None else bias[expert].double() for bias in layer.biases)
        both = wide[tokens] @ gate_up[expert].T + first
        gate, up = (both[:, 0::2], both[:, 1::2]) if form.interleaved else both.chunk(2, 1)
        hidden = gated(gate, up, form).to(how.first).float()
        hidden = rounded(hidden, numerics) if how.hidden else hidden
        out.index_add_(0, tokens, (hidden.double() @ down[expert].T + second) * weights[tokens, slots, None])
    return out


def nearest(got: Tensor, want: Tensor, others: dict[str, Tensor], factor: float) -> None:
    """Say that a result is nearer to what is wanted than to each of the others, by a factor.

    Raises:
        AssertionError: it is not.
    """
    wide = got.to("cpu", torch.float64)
    right = float((wide - want).norm())
    for name, other in others.items():
        distance = float((wide - other).norm())
        assert right < distance / factor, (
            f"off by {right / float(want.norm()):.3g} from what is stated, and by only "
            f"{distance / float(want.norm()):.3g} from a layer where {name}"
        )


class ActivationSuite(Fixtures):
    """``activation:mxfp4`` and its like: what is quantised, and how."""

    @pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
    @pytest.mark.parametrize("word", WORDS)
    def test_linear_quantised_activations(
        self, backend: Backend, here: Device, device: torch.device, word: Activation, bias: bool
    ) -> None:
        """X is quantised by the rule that the backend names; the bias is added to the result."""
        problem = Problem(op="linear", n=96, k=288, activation=word, bias=bias, device=here)
        if not takes(backend, problem):
            return
        numerics, [values] = numerics_for(backend, problem), random_biases(problem)
        weight, x = random_weight(96, 288), random_x(300, 288)
        packed = calls.pack(
            backend, problem, weight.to(device), None if values is None else values.to(device)
        )
        answer = judge.linear(rounded(x, numerics), weight, values, numerics, "none").rounded(x.dtype)
        for m in (33, 1, 300):
            got = calls.linear(backend, x[:m].to(device), packed, problem)
            judge.Answer(answer.value[:m], answer.bound[:m]).check(got, f"m={m}")

    @pytest.mark.parametrize("value", NOT_FINITE, ids=str)
    @pytest.mark.parametrize("word", WORDS[:-1])
    def test_linear_quantised_activations_that_are_not_finite(
        self, backend: Backend, here: Device, device: torch.device, word: Activation, value: float
    ) -> None:
        """The token is NaN in every feature, and no other token is."""
        problem = Problem(op="linear", n=64, k=128, activation=word, device=here)
        if not takes(backend, problem):
            return
        numerics, weight, x = numerics_for(backend, problem), random_weight(64, 128), random_x(9, 128)
        x[4, 77] = value
        got = calls.linear(backend, x.to(device), calls.pack(backend, problem, weight.to(device)), problem)
        assert bool(got[4].isnan().all()), f"a block of x with {value} gives finite results"
        judge.linear(rounded(x, numerics), weight, None, numerics, "none").rounded(x.dtype).check(got)

    @pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
    @pytest.mark.parametrize(
        "form", [SILU, Gate(limit=10.0), GPT_OSS_SWIGLU], ids=["silu", "limit-10", "gpt-oss"]
    )
    @pytest.mark.parametrize("word", WORDS)
    def test_moe_quantised_activations(
        self, backend: Backend, here: Device, device: torch.device, word: Activation, form: Gate, bias: bool
    ) -> None:
        """Both x and the hidden state are quantised: the result is far nearer to that than to one of them alone.

        A hidden value near the middle of two codes may fall on either side, so element by element nothing can be said.
        """
        problem = Problem(
            op="moe", n=96, k=128, experts=4, top_k=2, activation=word, gate=form, bias=bias, device=here
        )
        if not takes(backend, problem):
            return
        numerics, layer = numerics_for(backend, problem), Layer.build(backend, device, problem)
        x, routes = random_x(24, 128), random_routes(24, 4, 2)
        got = layer.call(backend, x, *routes)
        if numerics.activation == "none":  # what `auto` may mean
            layer.answer(backend, x, *routes).check(got)
            return
        first = torch.float32 if numerics.hidden == "float32" else x.dtype
        stated, others = Rounding(first=first), [(True, False), (False, True), (False, False)]
        nearest(
            got,
            experts(layer, x, routes, numerics, stated),
            {
                str(how): experts(layer, x, routes, numerics, how)
                for how in (Rounding(*one, first) for one in others)
            },
            factor=2.5,
        )

    @pytest.mark.parametrize("word", WORDS[:-1])
    def test_moe_hidden_state_is_rounded_as_stated(
        self, backend: Backend, here: Device, device: torch.device, word: Activation
    ) -> None:
        """Before it is quantised, the hidden state stays float32 or gets the dtype of x, as the numerics say."""
        problem = Problem(op="moe", n=512, k=64, experts=2, top_k=1, activation=word, device=here)
        if not takes(backend, problem):
            return
        numerics, layer = numerics_for(backend, problem), Layer.build(backend, device, problem)
        x, routes = random_x(48, 64), random_routes(48, 2, 1)
        ways = {"float32": Rounding(), "input": Rounding(first=x.dtype)}
        stated, other = ways[numerics.hidden], ways["input" if numerics.hidden == "float32" else "float32"]
        nearest(
            layer.call(backend, x, *routes),
            experts(layer, x, routes, numerics, stated),
            {str(other): experts(layer, x, routes, numerics, other)},
            factor=1.5,
        )

    @pytest.mark.parametrize("value", NOT_FINITE, ids=str)
    @pytest.mark.parametrize("word", WORDS[:-1])
    def test_moe_quantised_activations_that_are_not_finite(
        self, backend: Backend, here: Device, device: torch.device, word: Activation, value: float
    ) -> None:
        """The token is NaN in every feature, and no other token is."""
        problem = Problem(op="moe", n=64, k=96, experts=4, top_k=2, activation=word, device=here)
        if not takes(backend, problem):
            return
        layer, x, routes = Layer.build(backend, device, problem), random_x(6, 96), random_routes(6, 4, 2)
        clean = layer.call(backend, x, *routes).cpu()
        x[3, 50] = value
        got = layer.call(backend, x, *routes).cpu()
        assert bool(got[3].isnan().all()), f"a block of x with {value} gives finite results"
        others = [token for token in range(6) if token != 3]
        assert torch.equal(got[others], clean[others]), "another token changes"
