"""The kernel for few tokens: its tables on every machine, each of its variants on SM90."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mxfp4_core.backend import GPT_OSS_SWIGLU, Backend, Device, Problem, Routes, calls
from mxfp4_core.testing import judge
from mxfp4_core.testing.fixtures import Fixtures
from mxfp4_core.testing.samples import random_biases, random_routes, random_weight, random_x
from mxfp4_cuda_marlin import compute, warmup
from mxfp4_cuda_marlin.kernels.few import TOKEN, TOP_K_MOST, Few, linear_few, linear_fews, moe_few, moe_fews

FEWS = list(dict.fromkeys([*linear_fews(), *(few for pair in moe_fews() for few in pair)]))


@pytest.mark.parametrize("few", FEWS, ids=str)
def test_blocks_fit_on_a_multiprocessor(few: Few) -> None:
    assert (few.shared_bytes + 3 * 1024) * few.blocks <= 227 * 1024
    assert few.threads * few.blocks <= 2048 and few.threads <= 1024
    assert 64 % (16 * few.groups) == 0  # a warp does not cross strips


def test_linear_ends_where_the_gemm_begins() -> None:
    for n, k, last in (
        (64, 64, 64),
        (1024, 8192, 8),
        (2112, 8192, 64),
        (4096, 4096, 32),
        (4288, 4096, 16),
        (16384, 4096, 16),
        (25600, 5120, 8),
        (1 << 20, 5120, 8),
    ):
        fews = [linear_few(m, n, k) for m in range(1, last + 1)]
        assert all(fews) and linear_few(last + 1, n, k) is None
        assert [few.tokens for few in fews if few] == sorted(few.tokens for few in fews if few)
        assert all(few.tokens >= min(m, 32) for m, few in enumerate(fews, 1) if few)


def test_experts_get_wider_tiles_with_their_tokens() -> None:
    pairs = [moe_few(m, 8, 128, 768, 2048) for m in (1, 2, 3, 96)]
    assert [pair[0].tokens for pair in pairs if pair] == [1, 1, 8, 8]
    assert moe_few(97, 8, 128, 768, 2048) is None
    many = moe_few(1, TOP_K_MOST + 1, 1024, 768, 2048)
    assert many is not None and many[0].tokens == 8


def test_few_blocks_get_more_warps() -> None:
    one, two, many = (moe_few(m, top_k, 8, 1024, 4096) for m, top_k in ((2, 1), (2, 3), (8, 3)))
    assert one is not None and two is not None and many is not None
    assert one[1].warps > two[1].warps >= many[1].warps
    assert one[0].warps >= one[1].warps  # gate-up has fewer strips here
    narrow, wide = moe_few(1, 2, 8, 1024, 4096), moe_few(1, 2, 8, 14336, 4096)
    assert narrow is not None and wide is not None and narrow[0].blocks < wide[0].blocks


def test_one_token_fills_the_device_with_down() -> None:
    """Blocks are few where the hidden size is, so clusters divide the experts of the token."""
    for k in (2048, 2880, 4096, 7168):
        pair = moe_few(1, 8, 128, 1024, k)
        assert pair is not None and pair[1].blocks_of(-(-k // 64) * 64) >= 112
        assert pair[0].split == 1
    assert all(few.split == 1 for few in linear_fews())


def test_gate_up_and_down_of_a_pair_share_their_tiles() -> None:
    assert all(up.tokens == down.tokens for up, down in moe_fews())


def test_warmup_knows_each_mode() -> None:
    modes = {(defines["MODE"], defines["ONE"]) for name, _, defines in warmup.programs() if "decode" in name}
    assert modes == {(0, 1), (0, 0), (1, 1), (1, 0), (2, 0), (TOKEN, 1)}


def test_warmup_names_each_kernel_once() -> None:
    names = [name for name, _, _ in warmup.programs()]
    assert len(names) == len(set(names)) and all("(" not in name for name in names)


class TestFew(Fixtures):
    backend_name = "cuda-marlin"
    target = Device("cuda", "sm_90", "NVIDIA H200")

    @pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
    @pytest.mark.parametrize("few", linear_fews(), ids=str)
    def test_every_variant_of_linear_is_right(
        self, backend: Backend, here: Device, device: torch.device, few: Few, large: bool
    ) -> None:
        for n, k in ((64, 64), (320, 448), (1088, 2112)):
            weight = random_weight(n, k, scales=(100, 128))
            if large:
                weight.scales[5, 1], weight.scales[::3] = 252, 1
                weight.codes[5, 16:32] = 0
            problem = Problem(op="linear", n=n, k=k, bias=True, device=here)
            (bias,) = random_biases(problem)
            packed = calls.pack(backend, problem, weight.to(device), bias.to(device)).tensors
            assert (packed["scales"].shape[-1] == 128) != large
            for m in (1, few.tokens - 1, few.tokens, few.tokens + 1):
                if m:
                    x = random_x(m, k) * 2.0**-30
                    out = torch.full((m, n), torch.nan, dtype=torch.bfloat16, device=device)
                    weights = packed["codes"], packed["scales"], packed["bias"]
                    compute.linear_into(x.to(device), weights, out, few)
                    judge.linear(x, weight, bias, backend.numerics).check(out)

    @pytest.mark.parametrize("pair", moe_fews(), ids=str)
    def test_every_pair_of_experts_is_right(
        self,
        backend: Backend,
        here: Device,
        device: torch.device,
        pair: tuple[Few, Few],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        problem = Problem(
            op="moe", n=160, k=320, experts=5, top_k=2, gate=GPT_OSS_SWIGLU, bias=True, device=here
        )
        weights = [
            random_weight(*s, seed=i, scales=(117, 122)) for i, s in enumerate(calls.shapes(problem).values())
        ]
        biases = random_biases(problem)
        packed = [
            calls.pack(backend, problem, w.to(device), b.to(device), matrix)
            for w, b, matrix in zip(weights, biases, calls.shapes(problem), strict=True)
        ]
        monkeypatch.setattr(compute, "moe_variant", lambda *sizes: pair)
        for m in (1, 3, 50):
            x, (ids, factors) = random_x(m, 320), random_routes(m, 5, 2)
            ids[::7, 0], ids[3::11, 1] = -1, 5
            got = calls.moe(
                backend, x.to(device), *packed, Routes(ids.to(device), factors.to(device)), problem
            )
            local = torch.where((ids < 0) | (ids > 4), -1, ids)
            judge.moe(x, *weights, biases, local, factors, problem.gate, backend.numerics).check(got)

    @pytest.mark.parametrize("top_k", [TOP_K_MOST, TOP_K_MOST + 1, 100])
    def test_many_experts_of_one_token(
        self, backend: Backend, here: Device, device: torch.device, top_k: int
    ) -> None:
        problem = Problem(op="moe", n=64, k=128, experts=100, top_k=top_k, device=here)
        weights = [random_weight(*s, scales=(117, 122)) for s in calls.shapes(problem).values()]
        packed = [
            calls.pack(backend, problem, w.to(device), None, matrix)
            for w, matrix in zip(weights, calls.shapes(problem), strict=True)
        ]
        x, (ids, factors) = random_x(1, 128), random_routes(1, 100, top_k)
        got = calls.moe(backend, x.to(device), *packed, Routes(ids.to(device), factors.to(device)), problem)
        judge.moe(x, *weights, (None, None), ids, factors, problem.gate, backend.numerics).check(got)

    def test_replays_follow_their_inputs(self, backend: Backend, here: Device, device: torch.device) -> None:
        """Kernels overlap in a captured graph, too, and read what the one before wrote in the same replay."""
        problem = Problem(op="moe", n=256, k=512, experts=32, top_k=4, device=here)
        packed = [
            calls.pack(backend, problem, random_weight(*s, scales=(117, 122)).to(device), None, matrix)
            for matrix, s in calls.shapes(problem).items()
        ]
        for m in (1, 6, 20, 60):
            inputs = [
                tuple(t.to(device) for t in (random_x(m, 512, seed=i), *random_routes(m, 32, 4, seed=i)))
                for i in range(5)
            ]
            none = torch.full_like(inputs[4][1], -1)
            inputs[4] = (inputs[4][0], none, inputs[4][2])
            want = [
                calls.moe(backend, x, *packed, Routes(ids, factors), problem) for x, ids, factors in inputs
            ]
            assert not want[4].any()
            held = [tensor.clone() for tensor in inputs[0]]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                got = calls.moe(backend, held[0], *packed, Routes(held[1], held[2]), problem)
            for _ in range(20):
                for each, right in zip(inputs, want, strict=True):
                    for there, tensor in zip(held, each, strict=True):
                        there.copy_(tensor)
                    graph.replay()
                    assert torch.equal(got, right)

    def test_results_do_not_depend_on_absent_columns(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        """Tokens that a tile has no row for leave what was in shared memory in their columns, NaN perhaps."""
        problem = Problem(op="linear", n=128, k=256, device=here)
        weight = random_weight(128, 256)
        packed = calls.pack(backend, problem, weight.to(device))
        bad = torch.full((16, 256), torch.nan, dtype=torch.bfloat16, device=device)
        for m in (1, 3, 8, 11, 16):
            assert calls.linear(backend, bad[:m], packed, problem).isnan().all()
            x = random_x(m, 256)
            judge.linear(x, weight, None, backend.numerics).check(
                calls.linear(backend, x.to(device), packed, problem)
            )


@pytest.mark.parametrize(
    "change",
    [{"tokens": 1}, {"tokens": 16}, {"groups": 1}, {"warps": 8}, {"blocks": 2}, {"depth": 2}, {"split": 2}],
    ids=str,
)
def test_each_attribute_is_compiled_in(change: dict[str, int]) -> None:
    """Or one variant would take the machine code of another out of the cache."""
    one = Few(8, 2, 16, 1, depth=3)
    assert one.defines(0, True) != replace(one, **change).defines(0, True)
    assert one.defines(0, True) not in (one.defines(0, False), one.defines(1, True))
