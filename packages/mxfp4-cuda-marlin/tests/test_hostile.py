"""Hostile values and sizes on the device, for each kernel of the tables; what is refused is in test_checks.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.backend import GPT_OSS_SWIGLU, Backend, Device, Problem, Routes, calls
from mxfp4_core.errors import FormatError
from mxfp4_core.testing import judge
from mxfp4_core.testing.fixtures import Fixtures
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_routes, random_weight, random_x
from mxfp4_cuda_marlin import ops

TOKENS = (1, 2, 3, 7, 8, 13, 17, 40, 70, 150, 600)  # one for each tile, and odd ones
INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def any_bytes(*shape: int, seed: int = 0) -> MxTensor:
    """Return a weight of random bytes: every code, and every scale byte that the layout takes, NaN too."""
    weight = random_weight(*shape, seed=seed, scales=(0, 255))
    scales = torch.where(weight.scales > 252, 255, weight.scales)
    return MxTensor(weight.codes, scales, weight.shape)


class TestHostile(Fixtures):
    backend_name = "cuda-marlin"
    target = Device("cuda", "sm_90", "NVIDIA H200")

    def layer(self, backend: Backend, here: Device, device: torch.device, **changes: object) -> Layer:
        sizes = {"n": 96, "k": 160, "experts": 5, "top_k": 3, "bias": True, "gate": GPT_OSS_SWIGLU}
        return Layer.build(backend, device, Problem(op="moe", device=here, **sizes | changes))

    @pytest.mark.parametrize("m", TOKENS)
    def test_linear_with_activations_that_are_not_finite(
        self, backend: Backend, here: Device, device: torch.device, m: int
    ) -> None:
        """They stay in their rows; the others are bit by bit what they are without."""
        problem, weight = Problem(op="linear", n=192, k=320, device=here), random_weight(192, 320)
        packed, x = calls.pack(backend, problem, weight.to(device)), random_x(m, 320)
        clean = calls.linear(backend, x.to(device), packed, problem)
        x[::3, 5], x[1::3, 319], x[1::3, 0] = torch.nan, torch.inf, -torch.inf
        got = calls.linear(backend, x.to(device), packed, problem)
        assert torch.equal(got[2::3], clean[2::3]) and bool(got[::3].isnan().all())
        assert not bool(got[1::3].isfinite().any())

    @pytest.mark.parametrize("m", TOKENS)
    def test_linear_with_any_bytes(
        self, backend: Backend, here: Device, device: torch.device, m: int
    ) -> None:
        """Rows with a NaN scale are NaN, and the others are right, whatever the bytes are."""
        problem, weight = Problem(op="linear", n=256, k=64, device=here), any_bytes(256, 64)
        x = random_x(m, 64) * 2.0**-100
        got = calls.linear(
            backend, x.to(device), calls.pack(backend, problem, weight.to(device)), problem
        ).cpu()
        bad = (weight.scales == 255).any(1)
        assert 0 < int(bad.sum()) < 64 and torch.equal(got.isnan().all(0), bad)
        good = MxTensor(weight.codes[~bad], weight.scales[~bad], torch.Size((int((~bad).sum()), 64)))
        judge.linear(x, good, None, backend.numerics).check(got[:, ~bad])

    @pytest.mark.parametrize("mapped", [False, True], ids=["ids", "map"])
    @pytest.mark.parametrize("m", TOKENS)
    def test_moe_with_any_ids(
        self, backend: Backend, here: Device, device: torch.device, m: int, mapped: bool
    ) -> None:
        """What is no expert is an empty slot, whose weight is not looked at."""
        layer = self.layer(backend, here, device, total_experts=9 if mapped else 5)
        total = layer.problem.total_experts
        x, (ids, factors) = random_x(m, 160), random_routes(m, total, 3)
        wrong = torch.tensor([-1, -2, total, INT_MIN, INT_MAX, 2**30, -(2**30)], dtype=torch.int32)
        place = torch.arange(m * 3).view(m, 3)
        ids = torch.where(place % 2 == 0, wrong[place % 7], ids)
        expert_map = torch.tensor([0, 4, -1, INT_MIN, 2, 5, INT_MAX, 1, 3], dtype=torch.int32)
        local = torch.where((ids >= 0) & (ids < total), ids, -1)
        if mapped:
            local = torch.where(local >= 0, expert_map[local.clamp(0).long()], -1)
        local = torch.where((local >= 0) & (local < 5), local, -1)
        hostile = torch.where(local < 0, torch.tensor([torch.nan, torch.inf, -1e30])[place % 3], factors)
        got = layer.call(backend, x, ids, hostile, expert_map if mapped else None)
        layer.answer(backend, x, local, factors).check(got)

    @pytest.mark.parametrize("m", TOKENS)
    def test_moe_without_any_expert(
        self, backend: Backend, here: Device, device: torch.device, m: int
    ) -> None:
        layer = self.layer(backend, here, device)
        x, ids = random_x(m, 160), torch.full((m, 3), -1, dtype=torch.int32)
        got = layer.call(backend, x, ids, torch.full((m, 3), torch.nan))
        assert got.shape == (m, 160) and not bool(got.any())

    @pytest.mark.parametrize("m", TOKENS)
    def test_moe_with_activations_that_are_not_finite(
        self, backend: Backend, here: Device, device: torch.device, m: int
    ) -> None:
        layer, x, routes = self.layer(backend, here, device), random_x(m, 160), random_routes(m, 5, 3)
        clean = layer.call(backend, x, *routes)
        x[::3, 5], x[1::3, 159] = torch.nan, torch.inf
        got = layer.call(backend, x, *routes)
        assert torch.equal(got[2::3], clean[2::3]) and bool(got[::3].isnan().all())

    @pytest.mark.parametrize("m", TOKENS)
    def test_moe_where_all_meet_in_one_expert(
        self, backend: Backend, here: Device, device: torch.device, m: int
    ) -> None:
        """The worst case of the tables of tiles: one expert has every slot."""
        layer, x = self.layer(backend, here, device), random_x(m, 160)
        ids, factors = torch.full((m, 3), 4, dtype=torch.int32), torch.rand(m, 3)
        layer.answer(backend, x, ids, factors).check(layer.call(backend, x, ids, factors))

    def test_moe_with_the_most_experts(self, backend: Backend, here: Device, device: torch.device) -> None:
        layer = self.layer(backend, here, device, experts=1024, n=32, k=64, top_k=8)
        for m in (1, 40, 700):
            x, (ids, factors) = random_x(m, 64), random_routes(m, 1024, 8)
            layer.answer(backend, x, ids, factors).check(layer.call(backend, x, ids, factors))

    def test_moe_at_odd_addresses(self, backend: Backend, here: Device, device: torch.device) -> None:
        layer = self.layer(backend, here, device, k=128)
        up, down = (weight.tensors for weight in layer.packed)
        for m in TOKENS:
            inputs = [random_x(m, 128), *random_routes(m, 5, 3)]
            plain = [one.to(device) for one in inputs]
            odd = [one.new_empty(one.numel() + 1)[1:].view(one.shape).copy_(one) for one in plain]
            assert all(one.data_ptr() % 16 for one in odd)
            weights = [*(up[name] for name in ("codes", "scales", "bias"))]
            weights += [*(down[name] for name in ("codes", "scales", "bias"))]
            want, got = (ops.moe(a[0], *weights, *a[1:], None, 1.702, 7.0, 1.0) for a in (plain, odd))
            assert torch.equal(want, got)

    def test_tensors_that_are_elsewhere(self, backend: Backend, here: Device, device: torch.device) -> None:
        layer = self.layer(backend, here, device)
        x, (ids, factors) = random_x(4, 160).to(device), random_routes(4, 5, 3)
        with pytest.raises(FormatError, match="cpu"):
            calls.moe(backend, x, *layer.packed, Routes(ids, factors.to(device)), layer.problem)
        with pytest.raises(FormatError, match="cpu"):
            calls.moe(backend, x, *layer.packed, Routes(ids.to(device), factors), layer.problem)
        packed = calls.pack(backend, Problem(op="linear", n=64, k=64, device=here), random_weight(64, 64))
        with pytest.raises(FormatError, match="cpu"):
            ops.linear(x[:, :64].contiguous(), packed.tensors["codes"], packed.tensors["scales"], None)

    def test_more_results_than_32_bits_count(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        """Rows at the end are those of a short call, where element numbers have passed 2^31 and 2^32."""
        problem = Problem(op="linear", n=512, k=64, device=here)
        packed = calls.pack(backend, problem, random_weight(512, 64).to(device))
        m = 2**32 // 512 + 1000
        x = torch.randn(m, 64, device=device, dtype=torch.bfloat16)
        got = calls.linear(backend, x, packed, problem)
        for start in (0, 2**31 // 512 - 350, m - 700):
            self.near(
                got[start : start + 700], calls.linear(backend, x[start : start + 700], packed, problem)
            )

    def test_more_slots_than_one_pass_holds(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        layer = self.layer(backend, here, device, n=32, k=1088, experts=8, top_k=8, bias=False)
        m = 2**18 + 1000  # 2^21 slots and some, and 2^31 elements of the widest workspace and some
        x = torch.randn(m, 1088, device=device, dtype=torch.bfloat16)
        factors, ids = torch.rand(m, 8, device=device).topk(8)
        ids = ids.int()
        got = layer.call(backend, x, ids, factors)
        for start in (0, 2**31 // 1088 // 8 - 350, m - 1300, m - 700):
            part = slice(start, start + 700)
            self.near(got[part], layer.call(backend, x[part], ids[part], factors[part]))

    @staticmethod
    def near(got: Tensor, want: Tensor) -> None:
        """Another kernel may have another order of its sums."""
        error = (got.float() - want.float()).norm() / want.float().norm()
        assert float(error) < 0.01
