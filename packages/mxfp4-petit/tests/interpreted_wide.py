"""Run by ``test_interpreted.py`` with TRITON_INTERPRET=1: codes of 8 bits in our kernels, against the judge."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace

import torch
from interpreted import BACKEND

from mxfp4_core import quantize
from mxfp4_core.arithmetic import MXFP8, MxTensor
from mxfp4_core.backend import GPT_OSS_SWIGLU, Gate, Numerics, Problem, Routes, calls
from mxfp4_core.testing import judge
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_biases, random_routes, random_x
from mxfp4_petit.portable import compute
from mxfp4_petit.portable.layout import PortableLayout
from mxfp4_petit.portable.tiles import Tile


def drawn(*shape: int, seed: int = 0) -> MxTensor:
    """Return a random weight, whatever ends inside a block."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5
    return quantize(values, format="mxfp8", tail="pad")


def every_code(scales: torch.Tensor) -> MxTensor:
    """Return a weight [256, 256] whose row r has the code r throughout, and these scale bytes [256, 8]."""
    codes = torch.arange(256).to(torch.uint8)[:, None].expand(256, 256).contiguous()
    parts = {"codes": codes.view(torch.float8_e4m3fn), "scales": scales}
    return MxTensor.from_parts(MXFP8, parts, torch.Size((256, 256)))


def linear() -> None:
    """Odd sizes, biases, both dtypes, both variants, folded scales and exact ones, sums in parts."""
    for m, n, k, dtype, bias in (
        (5, 40, 288, torch.bfloat16, False),
        (17, 65, 500, torch.float16, True),
    ):
        problem = Problem(op="linear", n=n, k=k, bias=bias, dtype=str(dtype)[6:], format="mxfp8")
        weight, x, [values] = drawn(n, k), random_x(m, k, dtype), random_biases(problem)
        got = calls.linear(BACKEND, x, calls.pack(BACKEND, problem, weight, values), problem)
        judge.linear(x, weight, values, Numerics()).check(got, f"{m} {n} {k} {dtype}")
    weight, x = drawn(48, 1024), random_x(3, 1024)
    answer = judge.linear(x, weight, None, Numerics())
    for pairs, folded in itertools.product((False, True), repeat=2):
        packed = PortableLayout(pairs, wide=True).pack(weight)
        for split in (1, 4):
            parts = compute.Weight(packed["codes"], packed["scales"], None, pairs, folded, wide=True)
            got = compute.linear(x, parts, Tile(16, 32, split=split))
            answer.check(got, f"split {split}, pairs {pairs}, folded {folded}")


def values() -> None:
    """Each code and each scale byte is worth what the format says; NaN stays in its row."""
    one = torch.zeros(1, 256, dtype=torch.bfloat16)
    one[0, 5 * 32 + 7] = 1.0
    for pairs, byte in itertools.product((False, True), (1, 10, 127, 134, 135, 246, 254)):
        weight = every_code(torch.full((256, 8), byte, dtype=torch.uint8))
        finite = (torch.arange(256) & 0x7F) != 0x7F
        want = (weight.dequantize(torch.float64)[:, 0]).to(torch.bfloat16)
        packed = PortableLayout(pairs, wide=True).pack(weight)
        assert "extreme_scales" in packed  # because of the codes that are NaN
        exact = compute.Weight(packed["codes"], packed["extreme_scales"], None, pairs, wide=True)
        got = compute.linear(one, exact, Tile(16, 32))[0]
        assert torch.equal(got[finite], want[finite]) and bool(got[~finite].isnan().all()), (pairs, byte)
        if 10 <= byte <= 134:
            got = compute.linear(one, exact._replace(folded=True), Tile(16, 32))[0]
            assert torch.equal(got[finite], want[finite]), (pairs, byte)
            wide = compute.widened(exact._replace(folded=True), one)
            assert torch.equal(wide[finite], weight.dequantize(torch.bfloat16)[finite]), (pairs, byte)
    scales = torch.full((256, 8), 127, dtype=torch.uint8)
    scales[:, 5] = torch.arange(256).to(torch.uint8)
    weight = every_code(scales)
    weight.codes.view(torch.uint8).fill_(0x38)  # 1.0
    packed = PortableLayout(wide=True).pack(weight)
    exact = compute.Weight(packed["codes"], packed["extreme_scales"], None, wide=True)
    got = compute.linear(one, exact, Tile(16, 32))[0].double()
    assert torch.equal(got[:255], torch.exp2(torch.arange(255, dtype=torch.float64) - 127))
    assert bool(got[255].isnan())


def experts() -> None:
    """Gates in both orders of rows, biases, maps, empty slots; rows that are sorted already; shared experts."""
    for gate in (GPT_OSS_SWIGLU, Gate(limit=0.5)):
        problem = Problem(
            op="moe", n=40, k=96, experts=3, total_experts=5, top_k=2, gate=gate, bias=True, format="mxfp8"
        )
        layer = layer_of(problem)
        ids, weights = random_routes(6, 5, 2)
        ids[1, 0], weights[1, 0] = -1, torch.nan
        expert_map = torch.tensor([2, -1, 0, -1, 1], dtype=torch.int32)
        here = torch.where(ids >= 0, expert_map[ids.clamp(0, 4).long()], -1)
        x = random_x(6, 96)
        got = calls.moe(BACKEND, x, *layer.packed, Routes(ids, weights, expert_map), problem)
        clean = torch.where(here < 0, torch.zeros(()), weights)
        judge.moe(x, *layer.weights, layer.biases, here, clean, gate, Numerics()).check(got, str(gate))
    problem = Problem(op="moe", n=32, k=64, experts=3, top_k=2, shared_experts=1, format="mxfp8")
    layer, x, routes = layer_of(problem), random_x(3, 64), random_routes(3, 3, 2)
    layer.answer(BACKEND, x, *routes).check(layer.call(BACKEND, x, *routes))
    batched = replace(problem, shared_experts=0, top_k=1, tokens="batched")
    layer, x = layer_of(batched), random_x(3 * 2, 64).view(3, 2, 64)
    got = calls.moe(BACKEND, x, *layer.packed, Routes.by_expert("cpu"), batched)
    for expert in range(3):
        mine, ones = torch.full((2, 1), expert), torch.ones(2, 1)
        layer.answer(BACKEND, x[expert], mine, ones).check(got[expert])


def layer_of(problem: Problem) -> Layer:
    """Return experts with random weights."""
    first, second = (drawn(*shape, seed=i) for i, shape in enumerate(calls.shapes(problem).values()))
    up, down = random_biases(problem)
    return Layer.of(BACKEND, torch.device("cpu"), problem, (first, second), (up, down))


def main() -> None:
    # NumPy warns where NaN and infinity are meant, and Triton's interpreter about its own conversions.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for part in (linear, values, experts):
        part()


if __name__ == "__main__":
    main()
