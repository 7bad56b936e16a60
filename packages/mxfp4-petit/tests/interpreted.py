"""Run by ``test_interpreted.py`` with TRITON_INTERPRET=1: our kernels on a CPU, against the judge."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace

import torch

from mxfp4_core import MxTensor
from mxfp4_core.backend import GPT_OSS_SWIGLU, Device, Gate, Numerics, Problem, Routes, calls, select_backend
from mxfp4_core.testing import judge
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_biases, random_routes, random_weight, random_x
from mxfp4_core.testing.suite_gates import GATES, GateSuite
from mxfp4_petit.portable import compute
from mxfp4_petit.portable.layout import PortableLayout
from mxfp4_petit.portable.tiles import Tile

BACKEND = select_backend(
    Problem(op="linear", n=64, k=64), backend="petit", backend_options={"petit": {"provider": "triton"}}
).backend


def linear() -> None:
    """Odd sizes, biases, both dtypes, every kind of scale byte, and sums in parts."""
    for m, n, k, dtype, bias in (
        (5, 40, 288, torch.bfloat16, False),
        (17, 65, 500, torch.float16, True),
    ):
        problem = Problem(op="linear", n=n, k=k, bias=bias, dtype=str(dtype)[6:])
        weight, x, [values] = random_weight(n, k), random_x(m, k, dtype), random_biases(problem)
        packed = calls.pack(BACKEND, problem, weight, values)
        got = calls.linear(BACKEND, x, packed, problem)
        judge.linear(x, weight, values, Numerics()).check(got, f"{m} {n} {k} {dtype}")
    weight, x = random_weight(48, 1024), random_x(3, 1024)
    weight.scales.clamp_(2, 128)
    answer = judge.linear(x, weight, None, Numerics())
    for pairs, folded in itertools.product((False, True), repeat=2):
        packed = PortableLayout(pairs).pack(weight)
        for split in (1, 4):
            parts = compute.Weight(packed["codes"], packed["scales"], None, pairs, folded)
            got = compute.linear(x, parts, Tile(16, 32, split=split))
            answer.check(got, f"split {split}, pairs {pairs}, folded {folded}")


def scales() -> None:
    """Each scale byte is worth what the format says, and NaN stays in its row; folded ones in their range."""
    codes = torch.full((256, 128), 0x22, dtype=torch.uint8)
    weight = MxTensor(codes, torch.full((256, 8), 127, dtype=torch.uint8), torch.Size((256, 256)))
    weight.scales[:, 5] = torch.arange(256).to(torch.uint8)
    x = torch.zeros(1, 256, dtype=torch.bfloat16)
    x[0, 5 * 32 + 7] = 1.0
    packed = PortableLayout().pack(weight)
    assert "scales" not in packed
    got = compute.linear(x, compute.Weight(packed["codes"], packed["extreme_scales"], None))[0].double()
    assert torch.equal(got[:255], torch.exp2(torch.arange(255, dtype=torch.float64) - 127))
    assert bool(got[255].isnan())
    for pairs in (False, True):
        weight.scales[:, 5] = torch.arange(256).clamp(2, 128).to(torch.uint8)
        packed = PortableLayout(pairs).pack(weight)
        parts = compute.Weight(packed["codes"], packed["scales"], None, pairs, folded=True)
        got = compute.linear(x, parts)[0].double()
        assert torch.equal(got, torch.exp2(torch.arange(256, dtype=torch.float64).clamp(2, 128) - 127))


def experts() -> None:
    """Gates in both orders of rows, biases, maps, empty slots, one expert twice, ids of nobody."""
    for gate in (GPT_OSS_SWIGLU, Gate(limit=0.5), Gate(function="gelu"), Gate(function="relu2", gated=False)):
        problem = Problem(op="moe", n=40, k=96, experts=3, total_experts=5, top_k=2, gate=gate, bias=True)
        layer = Layer.build(BACKEND, torch.device("cpu"), problem)
        ids, weights = random_routes(6, 5, 2)
        ids[1, 0], ids[2], ids[3] = -1, torch.tensor([4, 4]), torch.tensor([7, 1])
        weights[1, 0] = torch.nan
        expert_map = torch.tensor([2, -1, 0, -1, 1], dtype=torch.int32)
        here = torch.where((ids >= 0) & (ids < 5), expert_map[ids.clamp(0, 4).long()], -1)
        x = random_x(6, 96)
        got = calls.moe(BACKEND, x, *layer.packed, Routes(ids, weights, expert_map), problem)
        clean = torch.where(here < 0, torch.zeros(()), weights)
        judge.moe(x, *layer.weights, layer.biases, here, clean, gate, Numerics()).check(got, str(gate))


def activations() -> None:
    """Every form by every pair of values, in the kernels' own arithmetic."""
    cpu = torch.device("cpu")
    for name, gate in GATES.items():
        if name in ("ungated-silu", "ungated-gelu-tanh", "ungated-relu") or (
            gate.function == "silu" and gate.gated
        ):
            continue  # the same code as another one, or run by `experts`
        GateSuite().test_moe_gate_values(BACKEND, Device.of(cpu), cpu, gate)


def other_tokens() -> None:
    """Shared experts, and rows that are sorted already."""
    problem = Problem(op="moe", n=32, k=64, experts=3, top_k=2, shared_experts=1)
    layer = Layer.build(BACKEND, torch.device("cpu"), problem)
    x, (ids, weights) = random_x(3, 64), random_routes(3, 3, 2)
    layer.answer(BACKEND, x, ids, weights).check(layer.call(BACKEND, x, ids, weights))
    flat = replace(problem, shared_experts=0, top_k=1)
    layer = Layer.build(BACKEND, torch.device("cpu"), flat)
    x = random_x(3 * 2, 64).view(3, 2, 64)
    counts = torch.tensor([2, 0, 1])
    got = calls.moe(
        BACKEND, x, *layer.packed, Routes.by_expert("cpu", counts), replace(flat, tokens="masked")
    )
    for expert, rows in ((0, 2), (2, 1)):
        mine, ones = torch.full((rows, 1), expert), torch.ones(rows, 1)
        layer.answer(BACKEND, x[expert, :rows], mine, ones).check(got[expert, :rows])


def main() -> None:
    # NumPy warns where NaN and infinity are meant, and Triton's interpreter about its own conversions.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for part in (linear, scales, experts, activations, other_tokens):
        part()


if __name__ == "__main__":
    main()
