"""Calls on the emulated device beyond the suite: each AITER, each kernel, marks, memory that nobody wrote."""

from __future__ import annotations

from dataclasses import replace

import pytest
import rocm_strict
import torch
from rocm_emulated import EmulatedRocm

from mxfp4_core import MxTensor, quantize
from mxfp4_core.backend import GPT_OSS_SWIGLU, SILU, Activation, Device, Gate, Problem, calls, numerics_for
from mxfp4_core.errors import BackendError, FormatError, ShapeError
from mxfp4_core.testing import judge
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_biases, random_routes, random_weight, random_x
from mxfp4_rocm import ops, vendor
from mxfp4_rocm.sorting import local_slots, sort
from mxfp4_rocm.tokens import probe_blocks, quantizer_rule

CPU = Device.of("cpu")
BACKEND = EmulatedRocm()


FORMS = [
    *(SILU, Gate(interleaved=True), Gate(limit=10.0), GPT_OSS_SWIGLU),
    *(Gate(function="gelu_tanh"), Gate(function="relu2", gated=False)),
]


@pytest.mark.parametrize("options", [{}, {"gemm": "triton"}, {"quantizer": "aiter"}], ids=str)
@pytest.mark.parametrize("activation", ["none", "mxfp4"])
@pytest.mark.parametrize("n", [130, 320])
def test_linear(version: str, n: int, activation: Activation, options: dict[str, str]) -> None:
    problem = Problem(
        op="linear", n=n, k=544, bias=n == 130, activation=activation, options=options, device=CPU
    )
    weight, [bias], x = random_weight(n, 544), random_biases(problem), random_x(70, 544)
    packed = calls.pack(BACKEND, problem, weight, bias)
    numerics = numerics_for(BACKEND, problem)
    for m in (1, 31, 32, 70):
        got = calls.linear(BACKEND, x[:m], packed, problem)
        judge.linear(x[:m], weight, bias, numerics, activation).check(got, f"m={m}")


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("options", [{}, {"moe": "triton"}], ids=str)
def test_moe(version: str, form: Gate, options: dict[str, str]) -> None:
    """Shared experts, a map, empty slots and padded sizes at once."""
    problem = Problem(
        op="moe", n=96, k=160, experts=4, total_experts=8, top_k=2, gate=form, shared_experts=1,
        activation="mxfp4", options=options, device=CPU,
    )  # fmt: skip
    layer, x, (ids, weights) = (
        Layer.build(BACKEND, torch.device("cpu"), problem),
        random_x(37, 160),
        random_routes(37, 8, 2),
    )
    ids[5], expert_map = -1, torch.tensor([2, -1, 0, -1, 3, 1, -1, -1])
    got = layer.call(BACKEND, x, ids, weights, expert_map)
    here = torch.where(ids < 0, -1, expert_map[ids.clamp(min=0).long()])
    layer.answer(BACKEND, x, here, weights).check(got)


@pytest.mark.parametrize("form", [SILU, GPT_OSS_SWIGLU], ids=str)
@pytest.mark.parametrize("activation", ["none", "mxfp4"])
def test_shared_experts_that_are_quantised_now_stand_beside_routed_ones_of_a_file(
    version: str, activation: Activation, form: Gate
) -> None:
    """A file has the routed experts in MXFP4, by a rule of its own, and the shared one in BF16."""
    problem = Problem(
        op="moe", n=96, k=160, experts=4, top_k=2, gate=form, shared_experts=1, activation=activation, device=CPU
    )  # fmt: skip
    torch.manual_seed(5)
    stacks = []
    for _, n, k in calls.shapes(problem).values():
        stored = quantize(torch.randn(4, n, k).bfloat16() / k**0.5, profile="quark")
        shared = quantize(torch.randn(1, n, k).bfloat16() / k**0.5)
        parts = (torch.cat(pair) for pair in zip(stored.parts.values(), shared.parts.values(), strict=True))
        stacks.append(MxTensor(*parts, torch.Size((5, n, k))))
    layer = Layer.of(BACKEND, torch.device("cpu"), problem, (stacks[0], stacks[1]))
    x, (ids, weights) = random_x(23, 160), random_routes(23, 4, 2)
    got = layer.call(BACKEND, x, ids, weights)
    layer.answer(BACKEND, x, ids, weights).check(got)
    without = replace(problem, shared_experts=0)
    routed = tuple(MxTensor(one.codes[:4], one.scales[:4], torch.Size((4, *one.shape[1:]))) for one in stacks)
    alone = Layer.of(BACKEND, torch.device("cpu"), without, (routed[0], routed[1])).call(
        BACKEND, x, ids, weights
    )
    assert not torch.allclose(got, alone, atol=1e-2)


def test_the_mark_is_set_where_copies_have_lost_it(version: str) -> None:
    problem = Problem(op="moe", n=256, k=256, experts=2, top_k=1, activation="mxfp4", device=CPU)
    layer = Layer.build(BACKEND, torch.device("cpu"), problem)
    copies = tuple(
        replace(one, tensors={name: tensor.clone() for name, tensor in one.tensors.items()})
        for one in layer.packed
    )
    assert not any(hasattr(tensor, "is_shuffled") for one in copies for tensor in one.tensors.values())
    x, routes = random_x(9, 256), random_routes(9, 2, 1)
    want = layer.call(BACKEND, x, *routes)
    assert torch.equal(Layer(problem, layer.weights, layer.biases, copies).call(BACKEND, x, *routes), want)


def test_wrong_calls_are_caught_by_the_emulated_aiter(version: str) -> None:
    """The strict functions refuse what would be silent on the device."""
    from aiter.fused_moe import fused_moe

    codes = torch.zeros(2, 512, 128, dtype=torch.uint8).view(rocm_strict.FP4)
    scales = torch.full((1024, 8), 127, dtype=torch.uint8).view(rocm_strict.E8M0)
    x, ids, weights = random_x(3, 256), torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, 1)
    kinds = {"activation": rocm_strict.ActivationType.Silu, "quant_type": rocm_strict.QuantType.per_1x32}
    with pytest.raises(rocm_strict.Wrong, match="not marked as shuffled"):
        fused_moe(x, codes, codes[:, :256], weights, ids, w1_scale=scales, w2_scale=scales[:512], **kinds)
    problem = Problem(op="linear", n=256, k=384, activation="mxfp4", device=CPU)
    with pytest.raises(rocm_strict.Wrong, match="k = 384"):
        rocm_strict.gemm_a4w4(
            *(torch.zeros(rows, 192, dtype=torch.uint8).view(rocm_strict.FP4) for rows in (3, 256)),
            *(torch.zeros(256, 16, dtype=torch.uint8).view(rocm_strict.E8M0),) * 2,
            True,
        )
    assert calls.alignment(BACKEND, problem).k == 256


def test_the_rule_of_the_quantizer_is_found_by_its_bytes(version: str) -> None:
    want = {"wheel": "aiter-triton-0.1.7", "head": "aiter-triton"}[version]
    assert quantizer_rule(torch.device("cpu")) == want
    codes = {
        name: quantize(probe_blocks(), profile=name).codes for name in ("aiter-triton", "aiter-triton-0.1.7")
    }
    assert not torch.equal(*codes.values())


def test_a_quantizer_with_a_rule_of_its_own_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(
        op="linear", n=64, k=256, activation="mxfp4", options={"quantizer": "aiter"}, device=CPU
    )
    packed = calls.pack(BACKEND, problem, random_weight(64, 256))

    def other(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rocm_strict.dynamic_mxfp4_quant(x, "floor/zero")

    real = vendor.function
    monkeypatch.setattr(
        "mxfp4_rocm.tokens.function", lambda name: other if name == "dynamic_mxfp4_quant" else real(name)
    )
    with pytest.raises(BackendError, match="no name here"):
        calls.linear(BACKEND, random_x(3, 256), packed, problem)


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("experts", [1, 5, 40])
def test_sorted_slots_are_whole_blocks_of_one_expert(experts: int, block: int) -> None:
    generator = torch.Generator().manual_seed(experts)
    ids = torch.randint(-1, experts + 1, (33, 3), generator=generator, dtype=torch.int32)
    local, _ = local_slots(ids, torch.ones(33, 3), None, experts, 0)
    order = sort(local, experts, block)
    end = int(order.filled)
    assert end % block == 0 and end <= len(order.slots)
    slots, owners = order.slots[:end].long(), order.experts.repeat_interleave(block)[:end]
    there = slots < ids.numel()
    assert torch.equal(slots[there].sort().values, (local.reshape(-1) < experts).nonzero()[:, 0])
    assert torch.equal(local.reshape(-1)[slots[there]], owners[there])


def test_without_aiter_a_call_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:  # it may be here: on the machine that this is for
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(vendor, "import_module", missing)
    vendor.forget()
    with pytest.raises(BackendError, match="pip install amd-aiter=="):
        vendor.function("gemm_a4w4")


X, CODES, SCALES = (
    torch.zeros(3, 256, dtype=torch.bfloat16),
    *(torch.zeros(64, w, dtype=torch.uint8) for w in (128, 8)),
)


@pytest.mark.parametrize(
    ("x", "codes", "scales", "way", "kind"),
    [
        (X.float(), CODES, SCALES, "triton", FormatError),
        (X.T.contiguous().T, CODES, SCALES, "triton", FormatError),
        (X[0], CODES, SCALES, "triton", ShapeError),
        (X[:, :128].contiguous(), CODES, SCALES, "triton", ShapeError),
        (X, CODES[None], SCALES, "triton", ShapeError),
        (X, CODES, SCALES[:32], "triton", ShapeError),
        (X, CODES, SCALES, "asm", ShapeError),
        (X, CODES.int(), SCALES, "triton", FormatError),
        (X, CODES[:, ::2], SCALES, "triton", FormatError),
    ],
)
def test_the_operators_refuse_what_does_not_belong_together(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, way: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="mxfp4_rocm::linear"):
        ops.linear(x, codes, scales, None, way, False)
    with pytest.raises(kind, match="mxfp4_rocm::moe"):
        stacks = [part[None] if part.dim() == 2 else part[0] for part in (codes, scales)]
        ids = torch.zeros(3, 1, dtype=torch.int32)
        ops.moe(x, *stacks, None, *stacks, None, ids, ids.float(), None, 0, *SILU.arguments, way, False)
