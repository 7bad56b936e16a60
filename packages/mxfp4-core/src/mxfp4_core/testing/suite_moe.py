"""MoE: the whole layer, with every form of gate, routing and parallelism that checkpoints have."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.backend import GPT_OSS_SWIGLU, SILU, Backend, Device, Gate, Packed, Problem, calls
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.testing import judge
from mxfp4_core.testing.fixtures import Fixtures, takes
from mxfp4_core.testing.samples import random_biases, random_routes, random_weight, random_x

# experts, top_k, n, k: a toy, one expert, sizes off every tile, all experts at once, and a shard of gpt-oss.
SHAPES = ((4, 2, 32, 64), (1, 1, 32, 32), (5, 3, 90, 160), (8, 8, 96, 96), (4, 4, 360, 288), (16, 6, 64, 256))
CLAMPED = Gate(limit=10.0)
TOKENS = (0, 1, 37)


@dataclass
class Layer:
    """A MoE layer with random weights: canonical on the CPU, packed on the device."""

    problem: Problem
    weights: tuple[MxTensor, MxTensor]
    biases: tuple[Tensor | None, Tensor | None]
    packed: tuple[Packed, Packed]

    @classmethod
    def build(cls, backend: Backend, device: torch.device, problem: Problem) -> Layer:
        """Draw the weights and pack them."""
        gate_up, down = (
            random_weight(*s, seed=i, scales=(117, 122)) for i, s in enumerate(calls.shapes(problem).values())
        )
        biases = random_biases(problem)
        packed = [
            calls.pack(backend, problem, w.to(device), None if b is None else b.to(device), matrix)
            for w, b, matrix in zip((gate_up, down), biases, calls.shapes(problem), strict=True)
        ]
        return cls(problem, (gate_up, down), (biases[0], biases[1]), (packed[0], packed[1]))

    def call(
        self, backend: Backend, x: Tensor, ids: Tensor, weights: Tensor, expert_map: Tensor | None = None
    ) -> Tensor:
        """Run the layer on the device of its weights."""
        device = next(iter(self.packed[0].tensors.values())).device
        there = None if expert_map is None else expert_map.to(device)
        return calls.moe(
            backend, x.to(device), *self.packed, ids.to(device), weights.to(device), self.problem, there
        )

    def answer(self, backend: Backend, x: Tensor, ids: Tensor, weights: Tensor) -> judge.Answer:
        """Ask the judge; ids are indices of experts here."""
        return judge.moe(x, *self.weights, self.biases, ids, weights, self.problem.gate, backend.numerics)


class MoeSuite(Fixtures):
    """The weighted sum over the chosen experts, on the device."""

    @pytest.mark.parametrize("gate", [SILU, CLAMPED, GPT_OSS_SWIGLU], ids=["silu", "clamped", "gpt-oss"])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_moe_grid(
        self,
        backend: Backend,
        here: Device,
        device: torch.device,
        shape: tuple[int, int, int, int],
        gate: Gate,
    ) -> None:
        """Each shape with each gate is right, or refused; gpt-oss's has biases and interleaved rows."""
        experts, top_k, n, k = shape
        bias = gate.interleaved
        problem = Problem(op="moe", n=n, k=k, experts=experts, top_k=top_k, gate=gate, bias=bias, device=here)
        if not takes(backend, problem):
            return
        layer = Layer.build(backend, device, problem)
        for m in TOKENS:
            x, (ids, weights) = random_x(m, k), random_routes(m, experts, top_k)
            got = layer.call(backend, x, ids, weights)
            assert got.dtype == x.dtype
            if m:
                layer.answer(backend, x, ids, weights).check(got, f"m={m}")
            else:
                assert got.shape == (0, k)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    def test_moe_dtypes(
        self, backend: Backend, here: Device, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Each dtype that is offered; ids of 64 bits and router weights of another dtype do as well."""
        problem = Problem(op="moe", n=64, k=96, experts=4, top_k=2, dtype=str(dtype)[6:], device=here)
        if not takes(backend, problem):
            return
        layer, x, (ids, weights) = (
            Layer.build(backend, device, problem),
            random_x(20, 96, dtype),
            random_routes(20, 4, 2),
        )
        weights = weights.to(torch.bfloat16)
        got = layer.call(backend, x, ids.to(torch.int64), weights)
        assert got.dtype == dtype
        layer.answer(backend, x, ids, weights).check(got)

    def test_moe_empty_slots_and_idle_experts(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        """-1 adds nothing, a token may choose nobody or one expert twice, and an expert may have no token."""
        problem = Problem(op="moe", n=64, k=96, experts=6, top_k=2, bias=True, device=here)
        if not takes(backend, problem):
            return
        layer, x = Layer.build(backend, device, problem), random_x(5, 96)
        ids = torch.tensor([[0, 3], [-1, 3], [2, -1], [-1, -1], [3, 3]], dtype=torch.int32)
        weights = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
        got = layer.call(backend, x, ids, weights)
        assert not bool(got[3].any())
        layer.answer(backend, x, ids, weights).check(got)

    def test_moe_expert_parallel(self, backend: Backend, here: Device, device: torch.device) -> None:
        """With a map, the ids are the router's and experts of other ranks add nothing here."""
        problem = Problem(op="moe", n=64, k=96, experts=3, total_experts=8, top_k=4, device=here)
        if not takes(backend, problem):
            return
        layer, x, (ids, weights) = (
            Layer.build(backend, device, problem),
            random_x(21, 96),
            random_routes(21, 8, 4),
        )
        expert_map = torch.tensor([-1, 2, -1, -1, 0, -1, 1, -1], dtype=torch.int32)
        got = layer.call(backend, x, ids, weights, expert_map)
        layer.answer(backend, x, expert_map[ids.long()], weights).check(got)
        with pytest.raises(ShapeError):
            layer.call(backend, x, ids, weights)

    def test_moe_empty_slots_ignore_their_weight(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        """A router may leave anything in the weight of a slot that it leaves empty, NaN too."""
        problem = Problem(op="moe", n=64, k=96, experts=6, top_k=2, bias=True, device=here)
        if not takes(backend, problem):
            return
        layer = Layer.build(backend, device, problem)
        for m in (1, 5, 70):
            x, (ids, weights) = random_x(m, 96), random_routes(m, 6, 2)
            ids[::2, 1], weights[::2, 1] = -1, torch.nan
            ids[3::4], weights[3::4] = -1, torch.inf
            want = layer.answer(backend, x, ids, weights.nan_to_num(0, 0))
            want.check(layer.call(backend, x, ids, weights))

    @pytest.mark.parametrize("wrong", [-2, 3, 2**31 - 1, -(2**31), 2**32 + 1])
    def test_moe_map_entries_out_of_range(
        self, backend: Backend, here: Device, device: torch.device, wrong: int
    ) -> None:
        """An entry of the map that is no expert here is an error or empty: never another expert's weights."""
        problem = Problem(op="moe", n=64, k=96, experts=3, total_experts=4, top_k=2, device=here)
        if not takes(backend, problem):
            return
        layer = Layer.build(backend, device, problem)
        x, (ids, weights) = random_x(6, 96), random_routes(6, 4, 2)
        try:
            got = layer.call(backend, x, ids, weights, torch.tensor([2, wrong, 0, 1]))
        except ShapeError:
            return
        layer.answer(backend, x, torch.tensor([2, -1, 0, 1])[ids.long()], weights).check(got)

    @pytest.mark.parametrize("wrong", [-2, 4, 2**31 - 1, -(2**31), 2**32 + 1, -(2**40)])
    def test_moe_ids_out_of_range(
        self, backend: Backend, here: Device, device: torch.device, wrong: int
    ) -> None:
        """An id that is no expert is an error or an empty slot: never another expert's weights."""
        problem = Problem(op="moe", n=64, k=96, experts=4, top_k=2, device=here)
        if not takes(backend, problem):
            return
        layer, x, (ids, weights) = (
            Layer.build(backend, device, problem),
            random_x(6, 96),
            random_routes(6, 4, 2),
        )
        bad = ids.to(torch.int64)
        bad[2, 1] = wrong
        empty = ids.clone()
        empty[2, 1] = -1
        try:
            got = layer.call(backend, x, bad, weights)
        except ShapeError:
            return
        layer.answer(backend, x, empty, weights).check(got)

    def test_moe_nan_stays_in_its_token(self, backend: Backend, here: Device, device: torch.device) -> None:
        """A NaN activation makes its own token NaN, and no other, whatever the clamp does."""
        for gate in (SILU, CLAMPED):
            problem = Problem(op="moe", n=64, k=96, experts=4, top_k=2, gate=gate, device=here)
            if not takes(backend, problem):
                continue
            layer, x, (ids, weights) = (
                Layer.build(backend, device, problem),
                random_x(6, 96),
                random_routes(6, 4, 2),
            )
            x[3, 50] = torch.nan
            got = layer.call(backend, x, ids, weights)
            assert bool(got[3].isnan().all())
            layer.answer(backend, x, ids, weights).check(got)

    def test_moe_the_same_twice(self, backend: Backend, here: Device, device: torch.device) -> None:
        """The same input gives the same bits, also where many tokens meet in one sum."""
        problem = Problem(op="moe", n=96, k=256, experts=8, top_k=4, device=here)
        if not takes(backend, problem):
            return
        layer, x, routes = Layer.build(backend, device, problem), random_x(65, 256), random_routes(65, 8, 4)
        first = layer.call(backend, x, *routes)
        assert all(torch.equal(layer.call(backend, x, *routes), first) for _ in range(3))

    def test_moe_strides_and_leading_axes(self, backend: Backend, here: Device, device: torch.device) -> None:
        """Views with gaps and batches give what the plain matrices give."""
        problem = Problem(op="moe", n=64, k=96, experts=4, top_k=2, device=here)
        if not takes(backend, problem):
            return
        layer, x, (ids, weights) = (
            Layer.build(backend, device, problem),
            random_x(12, 96),
            random_routes(12, 4, 2),
        )
        want = layer.call(backend, x, ids, weights)
        gaps = layer.call(backend, x.T.contiguous().T, ids.T.contiguous().T, weights.T.contiguous().T)
        assert torch.equal(gaps, want)
        batch = layer.call(backend, x.view(3, 4, 96), ids.view(3, 4, 2), weights.view(3, 4, 2))
        assert torch.equal(batch, want.view(3, 4, 96))

    def test_moe_wrong_inputs_are_refused(self, backend: Backend, here: Device, device: torch.device) -> None:
        """Sizes that do not belong together and swapped arguments are errors of ours."""
        problem = Problem(op="moe", n=64, k=96, experts=4, top_k=2, device=here)
        if not takes(backend, problem):
            return
        layer, x, (ids, weights) = (
            Layer.build(backend, device, problem),
            random_x(6, 96),
            random_routes(6, 4, 2),
        )
        for arguments in ((x[:, :64], ids, weights), (x, ids[:5], weights), (x, ids, weights[:, :1])):
            with pytest.raises(ShapeError):
                layer.call(backend, *arguments)
        for arguments in ((x, weights, ids), (x.double(), ids, weights), (x.to(torch.int8), ids, weights)):
            with pytest.raises(FormatError):
                layer.call(backend, *arguments)
