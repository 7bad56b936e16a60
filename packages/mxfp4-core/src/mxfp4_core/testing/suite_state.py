"""State: a call changes nothing but its result, and depends on nothing but its arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mxfp4_core.backend import Backend, Device, Packed, Problem, calls, numerics_for
from mxfp4_core.testing import judge
from mxfp4_core.testing.fixtures import Fixtures, posed, takes
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_biases, random_routes, random_weight, random_x


def copies(packed: Packed) -> dict[str, Tensor]:
    """Return the tensors as they are now."""
    return {name: tensor.clone() for name, tensor in packed.tensors.items()}


def same(packed: Packed, before: dict[str, Tensor]) -> bool:
    """Say whether no byte has changed."""
    return all(
        torch.equal(packed.tensors[name].view(torch.uint8), old.view(torch.uint8))
        for name, old in before.items()
    )


class StateSuite(Fixtures):
    """Two layers of one shape, called in turns."""

    def test_linear_calls_leave_no_trace(self, backend: Backend, here: Device, device: torch.device) -> None:
        """Inputs and earlier results stay, whatever other layers and numbers of tokens come in between."""
        problem = posed(
            backend, Problem(op="linear", n=96, k=160, bias="bias" in backend.features, device=here)
        )
        if not takes(backend, problem):
            return
        [bias] = random_biases(problem)
        there = None if bias is None else bias.to(device)
        one, two = (
            calls.pack(backend, problem, random_weight(96, 160, seed=seed).to(device), there)
            for seed in (0, 1)
        )
        before, x, other = copies(one), random_x(12, 160).to(device), random_x(12, 160, seed=9).to(device)
        source = x.clone()
        first = calls.linear(backend, x, one, problem)
        kept = first.clone()
        calls.linear(backend, other, one, problem)
        between = calls.linear(backend, x, two, problem)
        calls.linear(backend, x[:5], one, problem)
        assert torch.equal(x, source), "the call changes x"
        assert same(one, before), "the call changes the packed weight"
        assert torch.equal(first, kept), "a later call writes into an earlier result"
        assert torch.equal(calls.linear(backend, x, one, problem), kept), "a call depends on earlier ones"
        assert not torch.equal(between, kept), "two weights give one result"
        copied = Packed(one.layout, copies(one), one.shape)
        assert torch.equal(calls.linear(backend, x, copied, problem), kept), (
            "a copy of the weight is another one"
        )

    def test_moe_calls_leave_no_trace(self, backend: Backend, here: Device, device: torch.device) -> None:
        """The same for experts, with ids and weights."""
        problem = posed(
            backend,
            Problem(op="moe", n=64, k=96, experts=4, top_k=2, bias="bias" in backend.features, device=here),
        )
        if not takes(backend, problem):
            return
        one, two = (Layer.build(backend, device, problem, seed) for seed in (0, 7))
        x, other = random_x(12, 96).to(device), random_x(12, 96, seed=9).to(device)
        routes = [tensor.to(device) for tensor in random_routes(12, 4, 2)]
        others = [tensor.to(device) for tensor in random_routes(12, 4, 2, seed=8)]
        sources = [tensor.clone() for tensor in (x, *routes)]
        before = [copies(packed) for packed in one.packed]
        first = one.call(backend, x, *routes)
        kept = first.clone()
        one.call(backend, other, *others)
        between = two.call(backend, x, *routes)
        one.call(backend, x[:5], routes[0][:5], routes[1][:5])
        assert all(torch.equal(now, old) for now, old in zip((x, *routes), sources, strict=True)), (
            "the call changes x, ids or weights"
        )
        assert all(map(same, one.packed, before)), "the call changes the packed weights"
        assert torch.equal(first, kept), "a later call writes into an earlier result"
        assert torch.equal(one.call(backend, x, *routes), kept), "a call depends on earlier ones"
        assert not torch.equal(between, kept), "two layers give one result"

    def test_moe_map_is_not_kept(self, backend: Backend, here: Device, device: torch.device) -> None:
        """The map of a call is the one that counts, and stays as it is."""
        problem = posed(
            backend, Problem(op="moe", n=64, k=96, experts=2, total_experts=4, top_k=2, device=here)
        )
        if not takes(backend, problem):
            return
        layer, x, routes = Layer.build(backend, device, problem), random_x(9, 96), random_routes(9, 4, 2)
        for entries in ([0, 1, -1, -1], [-1, 1, 0, -1], [-1, -1, -1, -1]):
            expert_map = torch.tensor(entries, dtype=torch.int32)
            there = expert_map.to(device)
            got = layer.call(backend, x, *routes, there)
            assert torch.equal(there.cpu(), expert_map), "the call changes the map"
            layer.answer(backend, x, expert_map[routes[0].long()], routes[1]).check(got, f"map {entries}")

    @pytest.mark.parametrize("op", ["linear", "moe"])
    def test_sums_are_as_precise_as_stated(
        self, backend: Backend, here: Device, device: torch.device, op: str
    ) -> None:
        """Large terms that cancel leave the small ones, which a sum in 16 bits has lost by then."""
        sizes = {"experts": 2, "top_k": 1} if op == "moe" else {}
        problem = posed(backend, Problem(op=op, n=64, k=1024, device=here, **sizes))  # type: ignore[arg-type]  # op is an Op
        if not takes(backend, problem):
            return
        x = random_x(7, 1024)
        x[:, 0], x[:, -1] = 512.0, -512.0
        shapes = calls.shapes(problem)
        weights = [
            random_weight(*shape, seed=index, scales=(120, 122))
            for index, shape in enumerate(shapes.values())
        ]
        # The two large inputs meet the same weight, so that their terms cancel.
        weights[0].codes[..., 0], weights[0].codes[..., -1] = 0x22, 0x22
        weights[0].scales[..., 0], weights[0].scales[..., -1] = 127, 127
        if op == "linear":
            packed = calls.pack(backend, problem, weights[0].to(device))
            got = calls.linear(backend, x.to(device), packed, problem)
            judge.linear(x, weights[0], None, numerics_for(backend, problem)).check(got)
            return
        layer = Layer.of(backend, device, problem, (weights[0], weights[1]))
        ids = torch.arange(7, dtype=torch.int32)[:, None] % 2
        layer.answer(backend, x, ids, torch.ones(7, 1)).check(layer.call(backend, x, ids, torch.ones(7, 1)))
