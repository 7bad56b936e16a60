"""The shipped suite, and what only this backend has: verdicts and layouts on every machine, the rest on SM90."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mxfp4_core.backend import GPT_OSS_SWIGLU, Backend, Device, Problem, Routes, calls, compile_all
from mxfp4_core.backend.warmup import processors
from mxfp4_core.testing import BackendConformance, judge
from mxfp4_core.testing.samples import random_biases, random_routes, random_weight, random_x
from mxfp4_cuda_marlin import compute
from mxfp4_cuda_marlin.kernels import build, load
from mxfp4_cuda_marlin.kernels.tiles import Tile, linear_variants, moe_variants

# Variants that are also compiled for scale bytes above 128: one of each form of the main loop.
LARGE = (Tile(32, 16, 2, 2, 4), Tile(144, 80, 2, 2), Tile(192, 160, 2, 1), Tile(64, 48, 2, 1, 2, split=2))


class TestCudaMarlin(BackendConformance):
    backend_name = "cuda-marlin"
    target = Device("cuda", "sm_90", "NVIDIA H200")

    @pytest.mark.parametrize(
        ("tile", "small"),
        [*((tile, True) for tile in linear_variants()), *((tile, False) for tile in LARGE)],
        ids=str,
    )
    def test_every_tile_is_right(
        self, backend: Backend, here: Device, device: torch.device, tile: Tile, small: bool
    ) -> None:
        weight = random_weight(320, 448, scales=(100, 128) if small else (1, 252))
        if not small:  # a wide range of scales, without leaving the range of the result
            weight.scales[::2] = 100
            weight.scales[5, 3] = 252
            weight.codes[5, 48:64] = 0
        problem, x = Problem(op="linear", n=320, k=448, device=here), random_x(150, 448) * 2.0**-30
        packed = calls.pack(backend, problem, weight.to(device)).tensors
        assert (packed["scales"].shape[-1] == 128) == small
        there, out = x.to(device), torch.full((150, 320), torch.nan, dtype=torch.bfloat16, device=device)
        compute.linear_into(there, (packed["codes"], packed["scales"], None), out, tile)
        judge.linear(x, weight, None, backend.numerics).check(out)

    @pytest.mark.parametrize("tile", moe_variants(), ids=str)
    def test_every_tile_of_experts_is_right(
        self,
        backend: Backend,
        here: Device,
        device: torch.device,
        tile: Tile,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        problem = Problem(
            op="moe", n=192, k=320, experts=5, top_k=2, gate=GPT_OSS_SWIGLU, bias=True, device=here
        )
        weights = [
            random_weight(*s, seed=i, scales=(117, 122)) for i, s in enumerate(calls.shapes(problem).values())
        ]
        biases = random_biases(problem)
        packed = [
            calls.pack(backend, problem, w.to(device), b.to(device), matrix)
            for w, b, matrix in zip(weights, biases, calls.shapes(problem), strict=True)
        ]
        x, (ids, factors) = random_x(700, 320), random_routes(700, 5, 2)
        ids[::7, 0], ids[3::11, 1] = -1, 5
        monkeypatch.setattr(compute, "moe_variant", lambda *sizes: (tile, tile))
        got = calls.moe(backend, x.to(device), *packed, Routes(ids.to(device), factors.to(device)), problem)
        local = torch.where((ids < 0) | (ids > 4), -1, ids)
        judge.moe(x, *weights, biases, local, factors, problem.gate, backend.numerics).check(got)

    def test_moe_with_large_scales_and_nan_blocks(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        problem = Problem(
            op="moe", n=64, k=128, experts=3, top_k=2, gate=GPT_OSS_SWIGLU, bias=True, device=here
        )
        weights = [
            random_weight(*s, seed=i, scales=(117, 122)) for i, s in enumerate(calls.shapes(problem).values())
        ]
        weights[0].codes[1, 0], weights[0].scales[1, 0] = 0, 200
        weights[1].scales[2, 7, 1] = 255
        biases = random_biases(problem)
        packed = [
            calls.pack(backend, problem, w.to(device), b.to(device), matrix)
            for w, b, matrix in zip(weights, biases, calls.shapes(problem), strict=True)
        ]
        x, (ids, factors) = random_x(20, 128), random_routes(20, 3, 2)
        got = calls.moe(
            backend, x.to(device), *packed, Routes(ids.to(device), factors.to(device)), problem
        ).cpu()
        answer = judge.moe(
            x, weights[0], weights[1], tuple(biases), ids, factors, problem.gate, backend.numerics
        )
        assert torch.equal(got[:, 7].isnan(), (ids == 2).any(1))
        keep = [column for column in range(128) if column != 7]
        judge.Answer(answer.value[:, keep], answer.bound[:, keep]).check(got[:, keep])

    def test_x_that_is_not_aligned(self, backend: Backend, here: Device, device: torch.device) -> None:
        problem, weight = Problem(op="linear", n=64, k=128, device=here), random_weight(64, 128)
        packed, x = calls.pack(backend, problem, weight.to(device)), random_x(9, 128).to(device)
        shifted = torch.empty(9 * 128 + 1, dtype=x.dtype, device=device)[1:].view(9, 128).copy_(x)
        assert shifted.data_ptr() % 16
        assert torch.equal(
            calls.linear(backend, shifted, packed, problem), calls.linear(backend, x, packed, problem)
        )

    def test_many_tokens_are_cut_into_passes(
        self, backend: Backend, here: Device, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        linear = Problem(op="linear", n=64, k=128, device=here)
        packed, x = (
            calls.pack(backend, linear, random_weight(64, 128).to(device)),
            random_x(700, 128).to(device),
        )
        moe = Problem(op="moe", n=64, k=128, experts=4, top_k=2, device=here)
        weights = [random_weight(*s, scales=(117, 122)) for s in calls.shapes(moe).values()]
        experts = [
            calls.pack(backend, moe, w.to(device), None, matrix)
            for w, matrix in zip(weights, calls.shapes(moe), strict=True)
        ]
        routes = random_routes(700, 4, 2)
        monkeypatch.setattr(compute, "_SLOTS", 202)
        got = calls.linear(backend, x, packed, linear)
        judge.linear(x.cpu(), random_weight(64, 128), None, backend.numerics).check(got)
        got = calls.moe(backend, x, *experts, Routes(*(t.to(device) for t in routes)), moe)
        judge.moe(x.cpu(), *weights, (None, None), *routes, moe.gate, backend.numerics).check(got)

    def test_streams_do_not_share_workspaces(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        problem = Problem(op="moe", n=256, k=256, experts=8, top_k=2, device=here)
        packed = [
            calls.pack(backend, problem, random_weight(*s, scales=(117, 122)).to(device), None, matrix)
            for matrix, s in calls.shapes(problem).items()
        ]
        inputs = [
            (random_x(40, 256, seed=i).to(device), *(t.to(device) for t in random_routes(40, 8, 2, seed=i)))
            for i in range(4)
        ]
        want = [calls.moe(backend, x, *packed, Routes(*routes), problem) for x, *routes in inputs]
        torch.cuda.synchronize()
        streams, got = [torch.cuda.Stream() for _ in inputs], [[] for _ in inputs]
        for _ in range(10):
            for stream, outputs, (x, *routes) in zip(streams, got, inputs, strict=True):
                with torch.cuda.stream(stream):
                    outputs.append(calls.moe(backend, x, *packed, Routes(*routes), problem))
        torch.cuda.synchronize()
        assert all(torch.equal(one, w) for w, outputs in zip(want, got, strict=True) for one in outputs)

    def test_map_entries_out_of_range_are_empty(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        problem = Problem(op="moe", n=64, k=96, experts=2, total_experts=4, top_k=2, device=here)
        weights = [random_weight(*s, scales=(117, 122)) for s in calls.shapes(problem).values()]
        packed = [
            calls.pack(backend, problem, w.to(device), None, matrix)
            for w, matrix in zip(weights, calls.shapes(problem), strict=True)
        ]
        x, (ids, factors) = random_x(12, 96), random_routes(12, 4, 2)
        there = torch.tensor([1, 2**30, -7, 0], dtype=torch.int32)
        got = calls.moe(
            backend,
            x.to(device),
            *packed,
            Routes(ids.to(device), factors.to(device), there.to(device)),
            problem,
        )
        local = torch.tensor([1, -1, -1, 0])[ids.long()]
        judge.moe(x, *weights, (None, None), local, factors, problem.gate, backend.numerics).check(got)

    def test_warmup_covers_what_runs(
        self,
        backend: Backend,
        here: Device,
        device: torch.device,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """After a warm-up no call compiles, whatever kernel it takes."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(load, "_functions", {})
        listed = backend.kernels()
        assert listed is not None
        # Warnings are errors here, so none of them warned that its products wait for each other.
        assert {one.state for one in compile_all(listed.kernels, jobs=processors())} == {"compiled"}
        monkeypatch.setattr(build, "_compile", lambda *a: pytest.fail(f"{a[-1]} is not in the warm-up"))
        for problem in (
            Problem(op="linear", n=192, k=1088, device=here),
            Problem(op="linear", n=8192, k=512, bias=True, device=here),
            Problem(op="moe", n=64, k=192, experts=8, top_k=2, device=here),
            Problem(op="moe", n=64, k=192, experts=256, top_k=8, gate=GPT_OSS_SWIGLU, bias=True, device=here),
        ):
            shapes = calls.shapes(problem)
            biases = {
                matrix: torch.zeros(s[:-1], device=device, dtype=torch.bfloat16)
                for matrix, s in shapes.items()
            }
            packed = [
                calls.pack(
                    backend,
                    problem,
                    random_weight(*s, scales=(117, 122)).to(device),
                    biases[matrix] if problem.bias else None,
                    matrix,
                )
                for matrix, s in shapes.items()
            ]
            # One number of tokens for each kernel that the layer can get.
            found = {(row.kernel, *row.settings.items()): row.first for row in backend.choices(problem)}
            for m in found.values():
                x = torch.randn(m, problem.k, device=device).bfloat16()
                if problem.op == "linear":
                    calls.linear(backend, x, *packed, problem)
                else:
                    factors, ids = torch.rand(m, problem.experts, device=device).topk(problem.top_k)
                    calls.moe(backend, x, *packed, Routes(ids, factors), problem)
        torch.cuda.synchronize()
