"""Wrong routes, weights, sizes and state of experts. `Steps` is the sound backend behind most of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mxfp4_core.backend import SILU, Packed, Problem, Routes
from mxfp4_core.testing.suite_large import MOE
from wrong_backends.base import Steps, caught_by

TOY = {"shape": (4, 2, 32, 64), "gate": SILU}


@caught_by("test_moe_grid", **TOY)
class WeightsIgnored(Steps):
    def weigh(self, result: Tensor, bias: Tensor | float, weight: Tensor) -> Tensor:
        return result + bias


@caught_by("test_moe_weights_of_any_size")
class WeightsNormalisedAgain(Steps):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        weights = routes.topk_weights
        total = weights.sum(1, keepdim=True)
        normal = torch.where(total == 0, weights, weights / total)
        return super().moe(x, gate_up, down, routes._replace(topk_weights=normal), problem)


@caught_by("test_moe_weights_of_any_size")
class NegativeWeightsAreZero(Steps):
    def weigh(self, result: Tensor, bias: Tensor | float, weight: Tensor) -> Tensor:
        return super().weigh(result, bias, weight.clamp(min=0))


@caught_by("test_moe_weights_of_any_size")
class WeightsBeforeTheBias(Steps):
    def weigh(self, result: Tensor, bias: Tensor | float, weight: Tensor) -> Tensor:
        return result * weight + bias


@caught_by("test_moe_grid", **TOY)
class WeightsOnTheInput(Steps):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        weights = routes.topk_weights
        first, ones = x * weights[:, :1].to(x.dtype), torch.ones_like(weights)
        return super().moe(first, gate_up, down, routes._replace(topk_weights=ones), problem)


@caught_by("test_moe_expert_parallel")
class MapIgnored(Steps):
    def local(self, routes: Routes, problem: Problem) -> Tensor:
        return super().local(
            routes._replace(topk_ids=routes.topk_ids % problem.experts, expert_map=None), problem
        )


@caught_by("test_moe_map_is_not_kept")
class MapOfTheFirstCall(Steps):
    first: Tensor | None = None

    def local(self, routes: Routes, problem: Problem) -> Tensor:
        if self.first is None:
            self.first = routes.expert_map
        return super().local(routes._replace(expert_map=self.first), problem)


@caught_by("test_moe_biases_under_expert_parallelism")
class AbsentExpertsBringABias(Steps):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        out = super().moe(x, gate_up, down, routes, problem)
        absent = (self.local(routes, problem) < 0).float() * routes.topk_weights
        bias = down.tensors.get("bias")
        return out if bias is None else (out + absent.sum(1, keepdim=True) * bias[0]).to(x.dtype)


@caught_by("test_moe_biases_under_expert_parallelism")
class BiasByTheIdOfTheRouter(Steps):
    places: Tensor | None = None

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        self.places = routes.expert_map
        return super().moe(x, gate_up, down, routes, problem)

    def bias(self, packed: Packed, expert: int, matrix: str, problem: Problem) -> Tensor | float:
        if self.places is not None:
            expert = int((self.places == expert).nonzero()[0]) % problem.experts
        return super().bias(packed, expert, matrix, problem)


@caught_by("test_moe_ids_out_of_range", wrong=4)
class IdsWrap(Steps):
    def local(self, routes: Routes, problem: Problem) -> Tensor:
        ids = routes.topk_ids
        wrapped = torch.where(ids == -1, ids, ids % problem.total_experts)
        return super().local(routes._replace(topk_ids=wrapped), problem)


@caught_by("test_moe_map_entries_out_of_range", wrong=3)
class MapEntriesWrap(Steps):
    def local(self, routes: Routes, problem: Problem) -> Tensor:
        there = routes.expert_map
        if there is not None:
            routes = routes._replace(expert_map=torch.where(there < 0, there, there % problem.experts))
        return super().local(routes, problem)


@caught_by("test_moe_empty_slots_and_idle_experts")
class EmptySlotIsTheLastExpert(Steps):
    def local(self, routes: Routes, problem: Problem) -> Tensor:
        ids = super().local(routes, problem)
        return torch.where(ids < 0, problem.experts - 1, ids)


@caught_by("test_moe_empty_slots_ignore_their_weight")
class WeightOfAnEmptySlotCounts(Steps):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        empty = (self.local(routes, problem) < 0) * routes.topk_weights
        return (super().moe(x, gate_up, down, routes, problem) + 0 * empty.sum(1, keepdim=True)).to(x.dtype)


@caught_by("test_moe_repeated_experts")
class RepeatedExpertCountsOnce(Steps):
    def slots(self, ids: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        hits = ids == expert
        tokens = hits.any(1).nonzero()[:, 0]
        return tokens, hits[tokens].int().argmax(1)


@caught_by("test_large_moe", word="none", sizes=MOE["many tokens"])
class TokensFrom1025AreZero(Steps):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        out = super().moe(x, gate_up, down, routes, problem)
        out[1024:] = 0
        return out


@caught_by("test_large_moe", word="none", sizes=MOE["many tokens for one expert"])
class RowsOfAnExpertFrom1025AreDropped(Steps):
    def slots(self, ids: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        tokens, slots = super().slots(ids, expert)
        return tokens[:1024], slots[:1024]


@caught_by("test_large_moe", word="none", sizes=MOE["sixteen experts"])
class SixteenthExpertIsZero(Steps):
    def slots(self, ids: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        return super().slots(ids, expert if expert < 15 else -5)


@caught_by("test_large_moe", word="none", sizes=MOE["128 experts"])
class ExpertsFrom65AreZero(Steps):
    def slots(self, ids: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        return super().slots(ids, expert if expert < 64 else -5)


@caught_by("test_large_moe", word="none", sizes=MOE["top-k over eight"])
class SlotsFromTheNinthAreDropped(Steps):
    def slots(self, ids: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        return super().slots(ids[:, :8], expert)


@caught_by("test_large_moe", word="none", sizes=MOE["a large hidden size"])
class ColumnsFrom4097AreIgnored(Steps):
    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return super().product(x[:, :4096], weight[:, :4096])


@caught_by("test_large_moe", word="none", sizes=MOE["a large intermediate size"])
class IntermediateFrom4097IsIgnored(Steps):
    def widen_hidden(self, hidden: Tensor, problem: Problem) -> Tensor:
        hidden[:, 4096:] = 0
        return super().widen_hidden(hidden, problem)


@caught_by("test_sums_are_as_precise_as_stated", op="moe")
class SumsIn16Bits(Steps):
    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        total = torch.zeros(x.shape[0], weight.shape[0])
        for start in range(0, x.shape[1], 32):
            part = x[:, start : start + 32] @ weight[:, start : start + 32].T
            # The pair that cancels belongs to two pieces, as in a kernel that divides k.
            total = (total + part).bfloat16().float()
        return total


@caught_by("test_moe_dtypes", dtype=torch.float32)
class Float32ThroughBfloat16(Steps):
    def widen(self, x: Tensor, problem: Problem) -> Tensor:
        return super().widen(x.bfloat16(), problem)


@caught_by("test_moe_the_same_twice")
class Unstable(Steps):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        out = super().moe(x, gate_up, down, routes, problem)
        return out * (1 + torch.randn(()).mul(0.1)).to(x.dtype)


@caught_by("test_moe_grid", **TOY)
class ResultIsFloat32(Steps):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        return super().moe(x, gate_up, down, routes, problem).float()


@caught_by("test_moe_grid", **TOY)
class ResultIsOnAnotherDevice(Steps):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        return super().moe(x, gate_up, down, routes, problem).to("meta")


@caught_by("test_moe_calls_leave_no_trace")
class WritesIntoX(Steps):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        return x.copy_(super().moe(x, gate_up, down, routes, problem)).clone()


@caught_by("test_moe_calls_leave_no_trace")
class WritesIntoTheIds(Steps):
    def local(self, routes: Routes, problem: Problem) -> Tensor:
        ids = super().local(routes, problem).clone()
        routes.topk_ids.fill_(0)
        return ids


@caught_by("test_moe_calls_leave_no_trace")
class WritesIntoTheWeights(Steps):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        out = super().moe(x, gate_up, down, routes, problem)
        routes.topk_weights.mul_(0.5)
        return out


@caught_by("test_moe_map_is_not_kept")
class WritesIntoTheMap(Steps):
    def local(self, routes: Routes, problem: Problem) -> Tensor:
        ids = super().local(routes, problem)
        if routes.expert_map is not None:
            routes.expert_map.clamp_(min=0)
        return ids


@caught_by("test_moe_calls_leave_no_trace")
class ReturnsItsWorkspace(Steps):
    memory = torch.empty(0)

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        out = super().moe(x, gate_up, down, routes, problem)
        if self.memory.numel() < out.numel():
            self.memory = torch.empty(out.numel(), dtype=out.dtype)
        return self.memory[: out.numel()].view_as(out).copy_(out)


@caught_by("test_moe_calls_leave_no_trace")
class RemembersTheFirstLayerOfAShape(Steps):
    def __init__(self) -> None:
        self.layers: dict[Any, tuple[Packed, Packed]] = {}

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        first, second = self.layers.setdefault(gate_up.shape, (gate_up, down))
        return super().moe(x, first, second, routes, problem)


@caught_by("test_moe_dtypes", dtype=torch.float32)
class WeightsOfTheRouterInBfloat16(Steps):
    def weigh(self, result: Tensor, bias: Tensor | float, weight: Tensor) -> Tensor:
        return super().weigh(result, bias, weight.bfloat16().float())


@caught_by("test_large_moe", word="mxfp4", sizes=MOE["sixteen experts"])
class SixteenthQuantisedExpertIsZero(Steps):
    quantised = False

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        self.quantised = problem.activation == "mxfp4"
        return super().moe(x, gate_up, down, routes, problem)

    def slots(self, ids: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        return super().slots(ids, -5 if expert == 15 and self.quantised else expert)
