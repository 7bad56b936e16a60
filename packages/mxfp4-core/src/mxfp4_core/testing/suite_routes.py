"""Routes: empty slots, repeated experts, weights of any size, maps of expert parallelism, ids that are no expert."""

from __future__ import annotations

import pytest
import torch

from mxfp4_core.backend import Backend, Device, Problem
from mxfp4_core.errors import ShapeError
from mxfp4_core.testing.fixtures import Fixtures, posed, takes
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_routes, random_x


class RoutesSuite(Fixtures):
    """What a router may choose, on the device."""

    def test_moe_empty_slots_and_idle_experts(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        """-1 adds nothing, a token may choose nobody or one expert twice, and an expert may have no token."""
        problem = posed(backend, Problem(op="moe", n=64, k=96, experts=6, top_k=2, bias=True, device=here))
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
        problem = posed(
            backend, Problem(op="moe", n=64, k=96, experts=3, total_experts=8, top_k=4, device=here)
        )
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
        problem = posed(backend, Problem(op="moe", n=64, k=96, experts=6, top_k=2, bias=True, device=here))
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
        problem = posed(
            backend, Problem(op="moe", n=64, k=96, experts=3, total_experts=4, top_k=2, device=here)
        )
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
        problem = posed(backend, Problem(op="moe", n=64, k=96, experts=4, top_k=2, device=here))
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

    def test_moe_repeated_experts(self, backend: Backend, here: Device, device: torch.device) -> None:
        """A token that chooses an expert twice gets it twice, each time with the weight of the slot."""
        problem = posed(backend, Problem(op="moe", n=64, k=96, experts=3, top_k=3, device=here))
        if not takes(backend, problem):
            return
        layer, generator = Layer.build(backend, device, problem), torch.Generator().manual_seed(4)
        for m in (1, 40):
            ids = torch.randint(0, 3, (m, 3), generator=generator, dtype=torch.int32)
            ids[0] = 1
            weights = torch.rand(m, 3, generator=generator) + 0.1
            layer.answer(backend, random_x(m, 96), ids, weights).check(
                layer.call(backend, random_x(m, 96), ids, weights), f"m={m}"
            )

    def test_moe_weights_of_any_size(self, backend: Backend, here: Device, device: torch.device) -> None:
        """Weights above 1, below 0 and of 0 count as they are: the router has normalised what it wanted to."""
        problem = posed(
            backend,
            Problem(op="moe", n=64, k=96, experts=4, top_k=2, bias="bias" in backend.features, device=here),
        )
        if not takes(backend, problem):
            return
        layer, x, (ids, _) = Layer.build(backend, device, problem), random_x(9, 96), random_routes(9, 4, 2)
        weights = torch.tensor([3.0, -0.75, 0.0, 2.5, 1.0, -4.0, 0.001, 16.0, 0.0] * 2).view(9, 2)
        layer.answer(backend, x, ids, weights).check(layer.call(backend, x, ids, weights))

    def test_moe_biases_under_expert_parallelism(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        """A bias belongs to the expert here, not to the router's id, and an absent expert brings none."""
        problem = posed(
            backend,
            Problem(op="moe", n=64, k=96, experts=3, total_experts=6, top_k=2, bias=True, device=here),
        )
        if not takes(backend, problem):
            return
        layer, x, (ids, weights) = (
            Layer.build(backend, device, problem),
            random_x(21, 96),
            random_routes(21, 6, 2),
        )
        expert_map = torch.tensor([2, -1, 0, -1, -1, 1], dtype=torch.int32)
        got = layer.call(backend, x, ids, weights, expert_map)
        here_ids = expert_map[ids.long()]
        assert not bool(got.cpu()[(here_ids < 0).all(1)].any()), (
            "a token without an expert here gets something"
        )
        layer.answer(backend, x, here_ids, weights).check(got)
