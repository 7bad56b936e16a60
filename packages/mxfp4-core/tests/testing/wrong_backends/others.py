"""Wrong formats, shared experts and sorted rows: a part is forgotten, a row is read or weighted that should not be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mxfp4_core.backend import Layout, Matrix, Packed, Problem, Routes
from mxfp4_core.backend.reference.backend import CanonicalLayout, OtherLayout, ReferenceBackend
from mxfp4_core.testing.suite_formats import FORMATS
from wrong_backends.base import caught_by, with_tensors

PLAIN_SCALED, DUAL = "mxfp4+input_scale", "mxfp4-dual"


def ones(packed: Packed, name: str) -> Packed:
    return (
        with_tensors(packed, **{name: torch.ones_like(packed.tensors[name])})
        if name in packed.tensors
        else packed
    )


@caught_by("test_format_linear", format=PLAIN_SCALED, word="none")
class InputScaleIgnored(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x, ones(weight, "input_scale"), problem)


@caught_by("test_format_linear", format=PLAIN_SCALED, word="mxfp4")
class InputScaleOnlyWithoutQuantisedActivations(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        kept = weight if problem.activation == "none" else ones(weight, "input_scale")
        return super().linear(x, kept, problem)


@caught_by("test_format_moe", format=PLAIN_SCALED, word="none")
class InputScaleOfDownIgnored(ReferenceBackend):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        return super().moe(x, gate_up, ones(down, "input_scale"), routes, problem)


@caught_by("test_format_linear", format=DUAL, word="none")
class OuterScalesIgnored(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x, ones(weight, "level0"), problem)


@caught_by("test_format_moe", format=DUAL, word="none")
class OuterScalesOfGateUpIgnored(ReferenceBackend):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        return super().moe(x, ones(gate_up, "level0"), down, routes, problem)


class ScalesReversed(OtherLayout):
    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]):  # type: ignore[no-untyped-def]
        return super().unpack({**tensors, "scales": tensors["scales"].flip(-1)}, shape)


@caught_by("test_format_layout", format="mxfp8", sizes={"op": "linear"})
class ScalesOfMxfp8ComeBackInAnotherOrder(ReferenceBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return ScalesReversed("mxfp8") if problem.format == "mxfp8" else super().layout(problem, matrix)


class SameId(OtherLayout):
    def __init__(self, format: str) -> None:
        super().__init__(format)
        self.id = CanonicalLayout.id


@caught_by("test_formats_have_layouts_of_their_own")
class OneIdForAllFormats(ReferenceBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return SameId(problem.format) if problem.format in FORMATS else super().layout(problem, matrix)


@caught_by("test_moe_shared_experts", bias=False)
class SharedExpertsIgnored(ReferenceBackend):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        return super().moe(x, gate_up, down, routes, replace(problem, shared_experts=0))


@caught_by("test_moe_shared_experts", bias=True)
class OnlyOneSharedExpert(ReferenceBackend):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        fewer = min(problem.shared_experts, 1)
        return super().moe(x, gate_up, down, routes, replace(problem, shared_experts=fewer))


@caught_by("test_moe_shared_experts", bias=False)
class SharedExpertsOnlyForRoutedTokens(ReferenceBackend):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        out = super().moe(x, gate_up, down, routes, problem)
        lost = (routes.topk_ids < 0).all(-1, keepdim=True) if problem.shared_experts else torch.tensor(False)
        return torch.where(lost, 0, out)


@caught_by("test_moe_sorted_rows", tokens="batched")
class RowsAtTheExpertBefore(ReferenceBackend):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        turned = x.roll(1, 0) if problem.tokens == "batched" else x
        return super().moe(turned, gate_up, down, routes, problem)


@caught_by("test_moe_sorted_rows", tokens="masked")
class LastRowOfEachExpertIsLost(ReferenceBackend):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        out = super().moe(x, gate_up, down, routes, problem)
        for expert, count in enumerate(routes.counts.tolist() if routes.counts is not None else []):
            out[expert, count - 1 : count] = 0
        return out


@caught_by("test_moe_sorted_rows", tokens="masked")
class RowsBehindTheCountsAreSummedIn(ReferenceBackend):
    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        out = super().moe(x, gate_up, down, routes, problem)
        return out if problem.tokens == "flat" else out + 0 * x.sum(1, keepdim=True)
