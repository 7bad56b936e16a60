"""Formats that are no pair of codes and scales: a block of 64, a third part of the weight, a part of the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from loader_layers import copy_whole, simple, weights
from torch.nn import Parameter
from toy_format import LAYERED, install, peaks

from mxfp4_core import Mxfp4Config, _plugins, quantize
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.arithmetic.shapes import Alignment
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend import calls
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Layout
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.loader import LoadSession
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(tmp_path, monkeypatch)
    yield
    _plugins.refresh()


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
def test_packing_pads_every_part_with_its_own_fill(op: Any) -> None:
    experts = {"experts": 2, "top_k": 1} if op == "moe" else {}
    problem = Problem(op=op, n=6, k=100, format="layered", **experts)
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


def test_a_weight_of_another_format_is_refused() -> None:
    weight = MxTensor.from_parts(MXFP4, MXFP4.empty((4, 64)), (4, 64))
    with pytest.raises(FormatError, match="the problem is about layered"):
        calls.pack(Device(), Problem(op="linear", n=4, k=64, format="layered"), weight)
    with pytest.raises(FormatError, match="the module holds layered"):
        Mxfp4Linear(4, 64, format="layered").fill("weight", weight)


def test_a_module_has_a_buffer_for_each_part() -> None:
    module = Mxfp4Experts(2, 32, 96, top_k=1, format="layered")
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == {
        "gate_up_proj": (2, 64, 64),
        "gate_up_proj_scale": (2, 64, 4),
        "gate_up_proj_peak": (2, 64, 2),
        "gate_up_proj_input_scale": (128,),
        "down_proj": (2, 96, 32),
        "down_proj_scale": (2, 96, 2),
        "down_proj_peak": (2, 96, 1),
        "down_proj_input_scale": (64,),
    }
