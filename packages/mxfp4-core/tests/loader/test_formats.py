"""Formats that are no pair of codes and scales: a block of 512, a third part of the weight, a part of the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from loader_layers import copy_whole, simple, weights
from torch.nn import Parameter

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.arithmetic.shapes import Alignment
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend import calls
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Layout
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.loader import LoadSession, QuantTarget
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear

LAYERED = get("mxfp4-dual+input_scale")


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


def same(target: QuantTarget, want: MxTensor) -> bool:
    return all(
        torch.equal(target.parts[part.name], want.parts[part.name]) for part in want.format.weight_parts
    )


@pytest.mark.parametrize("name", ["mxfp4+input_scale", "mxfp4-dual", "mxfp4-dual+input_scale", "mxfp8"])
def test_a_load_fills_every_part_of_the_weight(name: str) -> None:
    session, source = LoadSession(), weights(3, 8, 1024)
    target, load = simple(session, (3, 8, 1024), copy_whole, format=get(name))
    load(source)
    assert session.close().profile == (
        "even/even" if name == "mxfp4+input_scale" else target.arithmetic.profile
    )
    assert same(target, quantize(source, format=name))
    assert target.mx_tensor().format is get(name)
    if name.endswith("input_scale"):
        assert torch.equal(target.input_scale, torch.ones(1024)), "no part of the input is quantised"


def test_the_config_chooses_the_profile_of_each_format() -> None:
    session, source = LoadSession(Mxfp4Config(rule="rceil")), weights(4, 512)
    for name in ("mxfp8", "mxfp4", "mxfp4-dual"):
        target = session.target(name, (4, 512), dtype=torch.bfloat16, format=get(name))
        session.wrap(name, copy_whole)(Parameter(target.codes, requires_grad=False), source)
        assert same(target, quantize(source, format=name, rule="rceil"))


def test_pieces_end_at_the_blocks_of_the_format() -> None:
    session = LoadSession()

    def piece(param: Parameter, loaded_weight: torch.Tensor, shard_id: int) -> None:
        width = loaded_weight.shape[1]
        param.data.narrow(1, shard_id * width, width).copy_(loaded_weight)

    target, load = simple(session, (4, 1536), piece, format=LAYERED)
    with pytest.raises(ShapeError, match="between blocks of 512"):
        load(weights(4, 96), 0)
    whole = weights(4, 1536)
    for shard in (2, 0, 1):
        load(whole[:, 512 * shard : 512 * (shard + 1)], shard)
    session.close()
    assert same(target, quantize(whole, format=LAYERED.name))


def test_k_is_padded_to_the_block_of_the_format() -> None:
    with pytest.raises(ShapeError, match="multiple of 512"):
        LoadSession().target("w", (4, 96), dtype=torch.bfloat16, format=LAYERED)
    target, load = simple(LoadSession(Mxfp4Config(tail="pad")), (4, 544), copy_whole, format=LAYERED)
    load(weights(4, 544))
    assert target.level0.shape == (4, 2) and target.input_scale.shape == (1024,)
    assert not target.codes[:, 272:].any()
    assert same(target, quantize(weights(4, 544), format=LAYERED.name, tail="pad"))


@pytest.mark.parametrize("op", ["linear", "moe"])
def test_packing_pads_every_part_with_its_own_fill(op: Any) -> None:
    experts = {"experts": 2, "top_k": 1} if op == "moe" else {}
    problem = Problem(op=op, n=6, k=100, format=LAYERED.name, **experts)
    for matrix, shape in calls.shapes(problem).items():
        parts = LAYERED.empty(shape)
        for index, part in enumerate(parts.values()):
            part.copy_(torch.arange(part.numel()).reshape(part.shape) % 7 + index + 1)
        weight = MxTensor.from_parts(LAYERED, parts, shape, "even/even")
        packed = calls.pack(Device(), problem, weight, None, matrix)
        assert packed.shape[-1] % 512 == 0
        tensors = packed.tensors
        k = LAYERED.physical_k(shape[-1])
        rows = shape[-2] // 2 if matrix == "gate_up" else shape[-2]
        assert not tensors["codes"][
            ..., rows : packed.shape[-2] // (2 if matrix == "gate_up" else 1), :
        ].any()
        fill = LAYERED.part("level0").fill
        assert bool((tensors["level0"][..., k // 512 :] == fill).all())
        assert tensors["input_scale"].shape == packed.shape[-1:]
        assert torch.equal(tensors["input_scale"][:k], parts["input_scale"])
        assert bool((tensors["input_scale"][k:] == 1).all())
        again = calls.unpack(Device(), problem, packed, matrix, profile="even/even")
        assert all(torch.equal(again.parts[name], part) for name, part in parts.items())


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(FormatError, match="has codes, scales, level0, input_scale"):
        LoadSession().target("w", (4, 512), dtype=torch.bfloat16, format=LAYERED, parts=MXFP4.empty((4, 512)))


def test_a_weight_of_another_format_is_refused() -> None:
    weight = MxTensor.from_parts(MXFP4, MXFP4.empty((4, 64)), (4, 64))
    with pytest.raises(FormatError, match="the problem is about mxfp4-dual"):
        calls.pack(Device(), Problem(op="linear", n=4, k=64, format=LAYERED.name), weight)
    with pytest.raises(FormatError, match="the module holds mxfp4-dual"):
        Mxfp4Linear(4, 64, format=LAYERED.name).fill("weight", weight)


def test_a_module_has_a_buffer_for_each_part() -> None:
    module = Mxfp4Experts(2, 32, 96, top_k=1, format=LAYERED.name)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == {
        "gate_up_proj": (2, 64, 256),
        "gate_up_proj_scale": (2, 64, 16),
        "gate_up_proj_level0": (2, 64, 1),
        "gate_up_proj_input_scale": (512,),
        "down_proj": (2, 96, 256),
        "down_proj_scale": (2, 96, 16),
        "down_proj_level0": (2, 96, 1),
        "down_proj_input_scale": (512,),
    }
