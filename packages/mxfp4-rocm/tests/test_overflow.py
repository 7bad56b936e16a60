"""Values beyond what float32 and bfloat16 hold: infinity or NaN where they are, right numbers everywhere else."""

from __future__ import annotations

import pytest
import torch
from rocm_emulated import EmulatedRocm

from mxfp4_core.backend import GPT_OSS_SWIGLU, SILU, Device, Gate, Problem, calls, numerics_for
from mxfp4_core.testing import judge
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_biases, random_routes, random_weight, random_x

CPU = Device.of("cpu")
BACKEND = EmulatedRocm()


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(
    ("activation", "options"),
    [
        ("none", {}),
        ("mxfp4", {}),
        ("mxfp4", {"gemm": "triton"}),
        ("mxfp4", {"quantizer": "aiter"}),
    ],
    ids=str,
)
def test_linears(version: str, activation: str, options: dict[str, str], bias: bool) -> None:
    problem = Problem(
        op="linear", n=300, k=288, bias=bias, activation=activation, options=options, device=CPU
    )
    numerics, [values] = numerics_for(BACKEND, problem), random_biases(problem)
    weight, x = random_weight(300, 288), random_x(40, 288)
    weight.scales[7, 3] = highest = numerics.scale_bytes[1]
    weight.scales[8] = highest
    if numerics.scale_byte_255 == "nan":
        weight.scales[9, 1] = 255
    x[1, 5], x[2, 9], x[3, 70], x[4, 33] = torch.nan, torch.inf, 3e38, -3e38
    packed = calls.pack(BACKEND, problem, weight, values)
    answer = judge.linear(x, weight, values, numerics)
    got = calls.linear(BACKEND, x, packed, problem)
    answer.check(got)
    assert bool(got[0, 10:].isfinite().all()) and not bool(got[1:3].isfinite().any())
    assert bool((~got[5:, 8].isfinite() & answer.value[5:, 8].isfinite()).any())
    few = calls.linear(BACKEND, x[:5], packed, problem)  # by the kernel for few tokens, where there is one
    judge.linear(x[:5], weight, values, numerics).check(few)


@pytest.mark.parametrize("form", [SILU, GPT_OSS_SWIGLU, Gate(function="relu2", gated=False)], ids=str)
@pytest.mark.parametrize("activation", ["none", "mxfp4"])
def test_experts_of_the_triton_kernel(version: str, activation: str, form: Gate) -> None:
    layer, x, routes, answer = _overflowing(form, activation, {"moe": "triton"}, slice(None), 250)
    got = layer.call(BACKEND, x, *routes)
    answer.check(got)
    assert not bool(got[routes[0][:, 0] == 1].isfinite().all())
    assert bool(got[3:][routes[0][3:, 0] == 0].isfinite().all())


def test_fused_moe_does_not_show_what_overflows_between_its_products(version: str) -> None:
    """Its quantizer passes over NaN and infinity: such a token gets numbers, as README.md and docs/amd.md say."""
    row = slice(3, 4)
    layer, x, routes, answer = _overflowing(SILU, "mxfp4", {}, row, 254)
    got = layer.call(BACKEND, x, *routes)
    assert not bool(got[1:3].isfinite().any()), "the tokens themselves are looked at"
    hidden = (routes[0][:, 0] == 1) & (torch.arange(len(x)) > 2)
    with pytest.raises(AssertionError, match="beyond the bound"):
        _part(answer, hidden).check(got[hidden])
    assert bool(got[hidden].isfinite().all(1).any())
    _part(answer, ~hidden).check(got[~hidden])
    layer, x, routes, answer = _overflowing(SILU, "mxfp4", {"moe": "triton"}, row, 254)
    answer.check(layer.call(BACKEND, x, *routes), "the other kernel shows it")


def _part(answer: judge.Answer, rows: torch.Tensor) -> judge.Answer:
    lost = None if answer.lost is None else answer.lost[rows]
    return judge.Answer(answer.value[rows], answer.bound[rows], answer.noise, lost)


def _overflowing(
    form: Gate, activation: str, options: dict[str, str], rows: slice, byte: int
) -> tuple[Layer, torch.Tensor, tuple[torch.Tensor, torch.Tensor], judge.Answer]:
    """Make a layer whose second expert overflows in some rows of gate and up, and tokens, two of them not finite."""
    problem = Problem(
        op="moe", n=96, k=160, experts=2, top_k=1, gate=form, activation=activation, options=options, device=CPU
    )  # fmt: skip
    weights = tuple(
        random_weight(*shape, seed=seed, scales=(117, 122))
        for seed, shape in enumerate(calls.shapes(problem).values())
    )
    weights[0].scales[1, rows] = byte
    layer = Layer.of(BACKEND, torch.device("cpu"), problem, (weights[0], weights[1]))
    x, routes = random_x(23, 160), random_routes(23, 2, 1)
    x[1, 5], x[2, 9] = torch.nan, torch.inf
    return layer, x, routes, layer.answer(BACKEND, x, *routes)
