"""Formats that are no pair of codes and scales: a block of 64, a third part of the weight, a part of the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from loader_layers import copy_whole, simple, weights
from torch.nn import Parameter

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.arithmetic.formats.base import Format, Part, Parts
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.arithmetic.shapes import Alignment
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend import calls
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Layout
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.loader import LoadSession


class Layered(Format):
    """MXFP4 in blocks of 64, each with its largest magnitude beside it, and a multiplier of the input."""

    name = "layered"
    parts = (
        *MXFP4.parts,
        Part("peak", "_peak", "float32", 4, 64, fill=1.0),
        Part("input_scale", "_input_scale", "float32", 4, 1, fill=1.0, operand="input"),
    )
    block = 64

    def quantize_into(self, weight: torch.Tensor, parts: Parts, **options: Any) -> None:
        MXFP4.quantize_into(weight, {name: parts[name] for name in ("codes", "scales")}, **options)
        parts["peak"].copy_(weight.float().unflatten(-1, (-1, 64)).abs().amax(-1))

    def dequantize(self, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        return MXFP4.dequantize(parts, dtype)


class Whole:
    """A layout that keeps every part as it is."""

    id = "whole"
    alignment = Alignment(n=10, k=96)

    def pack(self, weight: MxTensor, bias: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return dict(weight.parts)

    def unpack(self, tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> MxTensor:
        return MxTensor.from_parts(LAYERED, tensors, shape)


class Device(ReferenceBackend):
    name = "whole"

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return Whole()


LAYERED = Layered()


def peaks(weight: torch.Tensor) -> torch.Tensor:
    return weight.float().unflatten(-1, (-1, 64)).abs().amax(-1)


def test_a_load_fills_every_part_of_the_weight() -> None:
    target, load = simple(LoadSession(), (3, 8, 128), copy_whole, format=LAYERED)
    source = weights(3, 8, 128)
    load(source)
    want = quantize(source)
    assert torch.equal(target.codes, want.codes) and torch.equal(target.scales, want.scales)
    assert torch.equal(target.peak, peaks(source))
    assert torch.equal(target.input_scale, torch.ones(128)), "no part of the input is quantised"
    assert target.mx_tensor().format is LAYERED
    assert target.bytes_after == 3 * 8 * (64 + 4 + 2 * 4) + 128 * 4


def test_pieces_end_at_the_blocks_of_the_format() -> None:
    session = LoadSession()

    def half(param: Parameter, loaded_weight: torch.Tensor, shard_id: int) -> None:
        width = loaded_weight.shape[1]
        param.data.narrow(1, shard_id * width, width).copy_(loaded_weight)

    _, load = simple(session, (4, 192), half, format=LAYERED)
    with pytest.raises(ShapeError, match="between blocks of 64"):
        load(weights(4, 96), 0)
    for shard in range(3):
        load(weights(4, 64, seed=shard), shard)
    session.close()


def test_k_is_padded_to_the_block_of_the_format() -> None:
    with pytest.raises(ShapeError, match="multiple of 64"):
        LoadSession().target("w", (4, 96), dtype=torch.bfloat16, format=LAYERED)
    target, load = simple(LoadSession(Mxfp4Config(tail="pad")), (4, 96), copy_whole, format=LAYERED)
    load(weights(4, 96))
    assert target.peak.shape == (4, 2) and target.input_scale.shape == (128,)
    assert not target.codes[:, 48:].any()


@pytest.mark.parametrize("op", ["linear", "moe"])
def test_packing_pads_every_part_with_its_own_fill(op: str) -> None:
    problem = (
        Problem(op="linear", n=6, k=100)
        if op == "linear"
        else Problem(op="moe", n=6, k=100, experts=2, top_k=1)
    )
    for matrix, shape in calls.shapes(problem).items():
        parts = LAYERED.empty(shape)
        for index, part in enumerate(parts.values()):
            part.copy_(torch.arange(part.numel()).reshape(part.shape) % 7 + index)
        weight = MxTensor.from_parts(LAYERED, parts, shape, "even/even")
        packed = calls.pack(Device(), problem, weight, None, matrix)
        assert packed.shape[-1] % 192 == 0, "lcm(96, 64)"
        tensors = packed.tensors
        k = LAYERED.physical_k(shape[-1])
        rows = shape[-2] // 2 if matrix == "gate_up" else shape[-2]
        assert not tensors["codes"][
            ..., rows : packed.shape[-2] // (2 if matrix == "gate_up" else 1), :
        ].any()
        assert bool((tensors["peak"][..., k // 64 :] == 1).all())
        assert tensors["input_scale"].shape == packed.shape[-1:]
        assert torch.equal(tensors["input_scale"][:k], parts["input_scale"])
        assert bool((tensors["input_scale"][k:] == 1).all())
        again = calls.unpack(Device(), problem, packed, matrix, profile="even/even")
        assert all(torch.equal(again.parts[name], part) for name, part in parts.items())


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(FormatError, match="layered has codes, scales, peak, input_scale"):
        LoadSession().target("w", (4, 64), dtype=torch.bfloat16, format=LAYERED, parts=MXFP4.empty((4, 64)))
