"""Formats beside plain ``mxfp4``, multipliers of the input, shared experts, and rows that an engine has sorted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mxfp4_core import quantize
from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.arithmetic.formats.registry import formats
from mxfp4_core.backend import SILU, Activation, Backend, Device, Gate, Problem, Routes, calls, numerics_for
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.testing import judge
from mxfp4_core.testing.fixtures import Fixtures, accepts, posed, takes
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_biases, random_routes, random_weight, random_x

FORMATS = ("mxfp4-dual", "mxfp8", "mxfp4+input_scale", "mxfp4-dual+input_scale", "mxfp8+input_scale")
WORDS: tuple[Activation, ...] = ("none", "mxfp4", "mxfp8", "fp8")


def weight_of(problem: Problem, shape: tuple[int, ...], seed: int) -> MxTensor:
    """Return a random weight in the format of the problem; multipliers of the input are between 1/2 and 2."""
    if problem.format == "mxfp4":
        return random_weight(*shape, seed=seed, scales=(117, 122))
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
    made = quantize(values, format=problem.format, tail="pad")
    for name, part in made.parts.items():
        if name == "input_scale":
            part.copy_(torch.rand(part.shape, generator=generator) * 1.5 + 0.5)
    return made


def layer_of(backend: Backend, device: torch.device, problem: Problem) -> Layer:
    """Return a MoE layer with random weights in the format of the problem."""
    weights = [weight_of(problem, shape, seed) for seed, shape in enumerate(calls.shapes(problem).values())]
    first, second = random_biases(problem)
    return Layer.of(backend, device, problem, (weights[0], weights[1]), (first, second))


class FormatSuite(Fixtures):
    """What a weight is made of, and where its tokens are."""

    @pytest.mark.parametrize("word", WORDS)
    @pytest.mark.parametrize("format", FORMATS)
    def test_format_linear(
        self, backend: Backend, here: Device, device: torch.device, format: str, word: Activation
    ) -> None:
        """Each format with each way to quantise x, at a size that ends inside a block of either kind."""
        problem = Problem(op="linear", n=130, k=600, bias=True, format=format, activation=word, device=here)
        if not takes(backend, problem):
            return
        weight, [bias], x = weight_of(problem, (130, 600), 0), random_biases(problem), random_x(19, 600)
        assert bias is not None
        packed = calls.pack(backend, problem, weight.to(device), bias.to(device))
        got = calls.linear(backend, x.to(device), packed, problem)
        judge.linear(x, weight, bias, numerics_for(backend, problem), word).check(got)

    @pytest.mark.parametrize("word", WORDS)
    @pytest.mark.parametrize("format", ["mxfp4", *FORMATS])
    def test_format_moe(
        self, backend: Backend, here: Device, device: torch.device, format: str, word: Activation
    ) -> None:
        """Each format with each way to quantise x and the hidden state."""
        problem = Problem(
            op="moe", n=90, k=160, experts=3, top_k=2, format=format, activation=word, device=here
        )
        if not takes(backend, problem):
            return
        layer, x, routes = layer_of(backend, device, problem), random_x(21, 160), random_routes(21, 3, 2)
        layer.answer(backend, x, *routes).check(layer.call(backend, x, *routes))

    @pytest.mark.parametrize("sizes", [{"op": "linear"}, {"op": "moe", "experts": 2, "top_k": 1}], ids=str)
    @pytest.mark.parametrize("format", FORMATS)
    def test_format_layout(
        self, backend: Backend, made_for: Device, format: str, sizes: dict[str, Any]
    ) -> None:
        """What was packed comes back, every part of it, byte for byte and through copies."""
        for gate in (SILU, Gate(interleaved=True)):
            problem = posed(
                backend, Problem(n=130, k=600, gate=gate, format=format, device=made_for, **sizes)
            )
            if not accepts(backend, problem):
                continue
            for matrix, shape in calls.shapes(problem).items():
                weight = weight_of(problem, shape, 1)
                packed = calls.pack(backend, problem, weight, None, matrix)
                copies = {name: tensor.clone() for name, tensor in packed.tensors.items()}
                back = calls.unpack(backend, problem, replace(packed, tensors=copies), matrix)
                assert back.format is weight.format and back.shape == weight.shape
                for name, part in weight.parts.items():
                    same = torch.equal(
                        *(one.contiguous().view(torch.uint8) for one in (back.parts[name], part))
                    )
                    assert same, f"{packed.layout}: {name} of {format} differ"

    def test_formats_have_layouts_of_their_own(self, backend: Backend, made_for: Device) -> None:
        """A packed weight of one format is never taken for that of another."""
        plain = posed(backend, Problem(op="linear", n=130, k=600, device=made_for))
        problems = [plain, *(replace(plain, format=name) for name in formats())]
        ids = {
            problem.format: backend.layout(problem).id for problem in problems if accepts(backend, problem)
        }
        assert len(set(ids.values())) == len(ids), f"layouts by format: {ids}"


class TokensSuite(Fixtures):
    """Shared experts and sorted rows."""

    @pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
    def test_moe_shared_experts(
        self, backend: Backend, here: Device, device: torch.device, bias: bool
    ) -> None:
        """They see every token with weight 1, whatever the router says, also one that it sends nowhere."""
        problem = posed(
            backend,
            Problem(op="moe", n=64, k=96, experts=4, top_k=2, shared_experts=2, bias=bias, device=here),
        )
        if not takes(backend, problem):
            return
        layer, x, (ids, weights) = (
            layer_of(backend, device, problem),
            random_x(17, 96),
            random_routes(17, 4, 2),
        )
        ids[3] = -1
        layer.answer(backend, x, ids, weights).check(layer.call(backend, x, ids, weights))

    @pytest.mark.parametrize("tokens", ["batched", "masked"])
    def test_moe_sorted_rows(self, backend: Backend, here: Device, device: torch.device, tokens: Any) -> None:
        """Each row gets its own expert, unweighted; rows behind the count are not read."""
        problem = posed(
            backend, Problem(op="moe", n=64, k=96, experts=4, top_k=2, tokens=tokens, device=here)
        )
        if not takes(backend, problem):
            return
        layer, x = layer_of(backend, device, problem), random_x(4 * 9, 96)
        counts = torch.tensor([9, 0, 4, 1] if tokens == "masked" else [9, 9, 9, 9])
        ids = torch.arange(4).repeat_interleave(9)
        there = torch.arange(9).repeat(4) < counts[ids]
        x[~there] = torch.nan
        given = Routes.by_expert(device, counts.to(device) if tokens == "masked" else None)
        got = calls.moe(backend, x.view(4, 9, 96).to(device), *layer.packed, given, problem)
        assert got.shape == (4, 9, 96) and got.dtype == x.dtype
        flat = ids[:, None].to(torch.int32)
        want = layer.answer(backend, x[there], flat[there], torch.ones(int(there.sum()), 1))
        want.check(got.cpu().view(-1, 96)[there])

    def test_moe_sorted_rows_that_are_wrong(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        """Rows of other experts, counts that are missing or too many, and ids beside them are refused."""
        problem = posed(
            backend, Problem(op="moe", n=64, k=96, experts=4, top_k=2, tokens="masked", device=here)
        )
        if not takes(backend, problem):
            return
        layer, x = layer_of(backend, device, problem), random_x(4 * 9, 96).view(4, 9, 96).to(device)
        counts = torch.zeros(4, dtype=torch.int32, device=device)
        right = Routes.by_expert(device, counts)
        ids = torch.zeros(36, 2, dtype=torch.int32, device=device)
        wrong: list[tuple[Tensor, Routes]] = [
            (x[:3], right),
            (x.view(36, 96), right),
            (x, Routes.by_expert(device)),
            (x, right._replace(counts=counts[:3])),
            (x, right._replace(topk_ids=ids)),
            (x, right._replace(counts=counts.float())),
        ]
        for rows, routes in wrong:
            with pytest.raises((ShapeError, FormatError)):
                calls.moe(backend, rows, *layer.packed, routes, problem)
