"""New weights for a prepared module get in whole, at the same addresses, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mxfp4_core import quantize
from mxfp4_core.arithmetic.shapes import Alignment
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend import calls
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, Layout
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.errors import FormatError, LoadError, ShapeError
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear, Mxfp4Module
from mxfp4_core.testing import EmulatedBackend
from mxfp4_core.testing.samples import random_routes, random_weight, random_x


class Flipped:
    """Every byte inverted, in the memory of the weight where it may; scale byte 255 is refused."""

    id = "flipped"
    alignment = Alignment(n=8)

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        return self._refuse(weight) or {name: ~part for name, part in weight.parts.items()}

    def pack_in_place(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        return self._refuse(weight) or {name: part.bitwise_not_() for name, part in weight.parts.items()}

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        return MxTensor(~tensors["codes"], ~tensors["scales"], torch.Size(shape))

    def _refuse(self, weight: MxTensor) -> None:
        if bool((weight.scales == 255).any()):
            raise FormatError("packing", seen="scale byte 255", rule="none of these", fix="none")


class InPlace(ReferenceBackend):
    name = "in-place"

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return Flipped()

    def linear(self, x: Tensor, weight: calls.Packed, problem: Problem) -> Tensor:
        return super().linear(x, self._plain(weight), problem)

    def moe(self, x, gate_up, down, routes, problem):  # type: ignore[no-untyped-def]  # as the base class
        return super().moe(x, self._plain(gate_up), self._plain(down), routes, problem)

    def _plain(self, packed: calls.Packed) -> calls.Packed:
        return replace(packed, tensors=Flipped().unpack(packed.tensors, packed.shape).parts)


BACKENDS = [ReferenceBackend(), EmulatedBackend(), InPlace()]
REFUSING = BACKENDS[1:]
backends = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
refusing = pytest.mark.parametrize("backend", REFUSING, ids=lambda backend: backend.name)
kinds = pytest.mark.parametrize("kind", ["linear", "moe"])


def build(kind: str, seed: int = 0, bias: bool = False) -> Mxfp4Module:
    module: Mxfp4Module
    module = (
        Mxfp4Linear(10, 70, bias=bias) if kind == "linear" else Mxfp4Experts(3, 10, 70, top_k=2, bias=bias)
    )
    for number, (matrix, shape) in enumerate(module.shapes.items()):
        values = torch.full(shape[:-1], float(seed), dtype=torch.bfloat16) if bias else None
        module.fill(matrix, random_weight(*shape, seed=seed + 10 * number, scales=(117, 122)), values)
    return module


def run(module: Mxfp4Module) -> Tensor:
    x = random_x(5, 70)
    return module(x) if isinstance(module, Mxfp4Linear) else module(x, *random_routes(5, 3, 2))


def places(module: Mxfp4Module) -> dict[str, int]:
    return {name: buffer.data_ptr() for name, buffer in module.named_buffers()}


def broken(kind: str) -> tuple[dict[str, Tensor], str]:
    """Return weights of which the last one cannot be packed, and its name."""
    state = {name: tensor.clone() for name, tensor in build(kind, seed=5).state_dict().items()}
    name = list(state)[-1]
    state[name].view(-1)[3] = 255
    return state, name.removesuffix("_scale")


@backends
@kinds
@pytest.mark.parametrize("consume", [False, True])
def test_new_weights_go_to_the_same_addresses(backend: Backend, kind: str, consume: bool) -> None:
    bias = backend.name != "in-place"
    module, other = build(kind, bias=bias).prepare(backend, consume=consume), build(kind, seed=5, bias=bias)
    before = places(module)
    for strict in (True, False):
        module.load_state_dict(other.state_dict(), strict=strict)
        assert places(module) == before
    state = other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(run(module), run(other.prepare(backend)))


@pytest.mark.parametrize("prepared", [False, True])
def test_torchs_own_dtypes_for_the_same_bits_are_taken(prepared: bool) -> None:
    module, other = build("linear"), build("linear", seed=5)
    if prepared:
        module.prepare(BACKENDS[1])
    state = other.state_dict()
    module.load_state_dict(
        {
            "weight": state["weight"].view(torch.float4_e2m1fn_x2),
            "weight_scale": state["weight_scale"].view(torch.float8_e8m0fnu),
        }
    )
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


@backends
def test_some_weights_only(backend: Backend) -> None:
    module, other = build("moe").prepare(backend), build("moe", seed=5)
    before, state = places(module), other.state_dict()
    module.load_state_dict({name: state[name] for name in state if name.startswith("down")}, strict=False)
    assert places(module) == before
    want = build("moe")
    want.fill("down", other.canonical("down"))
    assert torch.equal(run(module), run(want.prepare(backend)))


@refusing
@kinds
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("consume", [False, True])
def test_a_pack_that_refuses_changes_nothing(
    backend: Backend, kind: str, strict: bool, consume: bool
) -> None:
    module = torch.nn.ModuleDict({"layer": build(kind)})
    layer = module["layer"].prepare(backend, consume=consume)
    want, before = run(layer), places(layer)
    state, name = broken(kind)
    for _ in range(2):
        with pytest.raises(FormatError, match=f"^{name}: packing"):
            module.load_state_dict({f"layer.{key}": tensor for key, tensor in state.items()}, strict=strict)
        assert layer.backend is backend
        assert torch.equal(run(layer), want) and places(layer) == before
    layer.load_state_dict(build(kind, seed=5).state_dict())
    assert places(layer) == before
    assert torch.equal(run(layer), run(build(kind, seed=5).prepare(backend)))


@refusing
@kinds
def test_prepare_that_is_refused_leaves_the_canonical_bytes(backend: Backend, kind: str) -> None:
    module = build(kind)
    state, name = broken(kind)
    module.load_state_dict(state)
    for consume in (False, True):
        with pytest.raises(FormatError, match=f"^layers.7.{name}: packing"):
            module.prepare(backend, consume=consume, name="layers.7")
        assert module.backend is None
        assert all(torch.equal(tensor, state[key]) for key, tensor in module.state_dict().items())
    module.prepare(BACKENDS[0])
    want = run(module)
    with pytest.raises(FormatError, match="packing"):
        module.prepare(backend, consume=True)
    assert module.backend is BACKENDS[0] and torch.equal(run(module).isnan(), want.isnan())


@backends
@kinds
def test_an_error_inside_unprepared_changes_nothing(backend: Backend, kind: str) -> None:
    module = build(kind, bias=True).prepare(backend)
    want, before, state = run(module), places(module), module.state_dict()
    state = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.raises(KeyError, match="stop"), module.unprepared():
        for buffer in module.buffers():
            buffer.fill_(1)
        raise KeyError("stop")
    assert places(module) == before and torch.equal(run(module), want)
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


@backends
def test_a_bias_that_is_replaced_keeps_its_address(backend: Backend) -> None:
    module, other = build("linear", bias=True).prepare(backend), build("linear", seed=5, bias=True)
    before = places(module)
    with module.unprepared():
        module.fill("weight", other.canonical("weight"), torch.full((10,), 3.0, dtype=torch.bfloat16))
    assert places(module) == before and bool((module.bias == 3).all())
    other.bias.fill_(3)
    assert torch.equal(run(module), run(other.prepare(backend)))


@kinds
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("strict", [True, False])
def test_codes_without_scales_are_refused(kind: str, prepared: bool, strict: bool) -> None:
    module = build(kind)
    if prepared:
        module.prepare(BACKENDS[1])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = build(kind, seed=5).state_dict()
    scale = next(name for name in state if name.endswith("_scale"))
    del state[scale]
    with pytest.raises(LoadError, match=f"without {scale}"):
        module.load_state_dict(state, strict=strict)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("prepared", [False, True])
def test_other_shapes_and_dtypes_are_refused(prepared: bool) -> None:
    module = build("linear")
    if prepared:
        module.prepare(BACKENDS[1])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ShapeError, match="weight cannot be loaded"):
        module.load_state_dict(Mxfp4Linear.from_weight(random_weight(12, 70)).state_dict())
    state = module.state_dict()
    with pytest.raises(FormatError, match="quantise the weight first"):
        module.load_state_dict({**state, "weight": torch.randn(10, 48)}, strict=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@backends
def test_what_torch_refuses_changes_nothing(backend: Backend) -> None:
    module = build("moe", bias=True).prepare(backend)
    want, before, state = run(module), places(module), build("moe", seed=5, bias=True).state_dict()
    with pytest.raises(RuntimeError, match="down_proj_bias"):
        module.load_state_dict({**state, "down_proj_bias": torch.zeros(3, 71)})
    assert places(module) == before and torch.equal(run(module), want)


def test_a_layout_of_another_shape_does_not_fit_the_old_memory() -> None:
    class Varying(Flipped):
        def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
            packed = super().pack(weight)
            large = int(weight.scales.max()) > 200
            return {**packed, "scales": packed["scales"][..., None]} if large else packed

        pack_in_place = pack

    class Device(InPlace):
        def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
            return Varying()

    module = build("linear").prepare(Device())
    want, before = run(module), places(module)
    with pytest.raises(LoadError, match="weight cannot be loaded again in place"):
        module.load_state_dict(Mxfp4Linear.from_weight(random_weight(10, 70, scales=(210, 215))).state_dict())
    assert places(module) == before and torch.equal(run(module), want)


def test_repack_leaves_what_computes_alone_until_commit() -> None:
    module, other = build("moe").prepare(BACKENDS[2]), build("moe", seed=5)
    want, before = run(module), places(module)
    new = {matrix: other.apart(matrix) for matrix in module.matrices}
    packed = module.repack(new)
    assert torch.equal(run(module), want)
    module.commit(packed)
    assert places(module) == before and torch.equal(run(module), run(other.prepare(BACKENDS[2])))


def test_the_profile_follows_the_bytes() -> None:
    module = Mxfp4Linear.from_weight(quantize(torch.randn(10, 64))).prepare(BACKENDS[1])
    weight = quantize(torch.randn(10, 64), profile="quark")
    with module.unprepared():
        module.fill("weight", weight)
    assert module.profile == "quark"
    bad = MxTensor(weight.codes, torch.full_like(weight.scales, 255), weight.shape, "vllm")
    with pytest.raises(FormatError), module.unprepared():
        module.fill("weight", bad)
    assert module.profile == "quark"
