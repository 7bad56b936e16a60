"""Verdicts with their reasons, and errors of the operators, on a machine without the device."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from mxfp4_core.backend import Device, Gate, No, Problem, Yes, verdict
from mxfp4_core.errors import BackendError
from mxfp4_core.testing.samples import random_weight
from mxfp4_cuda_marlin import Sm90Layout, compute, ops
from mxfp4_cuda_marlin import backend as backend_object
from mxfp4_cuda_marlin.backend import CudaMarlinBackend

MODULE = sys.modules["mxfp4_cuda_marlin.backend"]  # the package's attribute of that name is the object
H200 = Device("cuda", "sm_90", "NVIDIA H200")
LINEAR = Problem(op="linear", n=4096, k=4096, device=H200)
MOE = Problem(op="moe", n=2880, k=2880, experts=128, top_k=4, device=H200)
QUANTIZE = Problem(op="quantize", n=64, k=64, device=H200)


def refusal(problem: Problem) -> str:
    answer = verdict(backend_object, problem)
    assert isinstance(answer, No), answer
    assert answer.fix
    return answer.reason


@pytest.fixture
def with_cuda_torch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return monkeypatch


def test_the_models_of_the_day_are_taken() -> None:
    for n, k, experts, top_k in (
        (768, 2048, 128, 8),
        (2048, 4096, 256, 6),
        (2880, 2880, 128, 4),
        (14336, 4096, 8, 2),
    ):
        for gate in (Gate(), Gate(limit=10.0), Gate(1.702, 7.0, 1.0, interleaved=True)):
            one = replace(
                MOE, n=n, k=k, experts=experts, total_experts=experts, top_k=top_k, gate=gate, bias=True
            )
            assert isinstance(verdict(backend_object, one), Yes)


@pytest.mark.parametrize(
    ("device", "says"),
    [
        (Device("cuda", "sm_80"), "sm_80"),
        (Device("cuda", "sm_100"), "sm_100"),
        (Device("cuda", "unknown"), "unknown"),
        (Device("hip", "gfx942"), "gfx942"),
        (Device("cpu", "x86_64"), "x86_64"),
    ],
    ids=str,
)
def test_other_devices_are_refused_by_name(device: Device, says: str) -> None:
    for problem in (LINEAR, MOE, QUANTIZE):
        assert says in refusal(replace(problem, device=device))


def test_float16_activations_are_refused_with_the_reason() -> None:
    assert "2^-127" in refusal(replace(LINEAR, dtype="float16"))
    assert "float32" in refusal(replace(MOE, dtype="float32"))
    assert isinstance(verdict(backend_object, replace(QUANTIZE, dtype="float16")), Yes)


@pytest.mark.parametrize("activation", ["mxfp4", "fp8"])
def test_quantised_activations_are_refused(activation: str) -> None:
    assert activation in refusal(replace(LINEAR, activation=activation))


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 2**31},
        {"k": 2**31},
        {"experts": 1025, "total_experts": 1025},
        {"n": 2**29, "experts": 1024, "total_experts": 1024},
        {"gate": Gate(limit=-1.0)},
        {"gate": Gate(limit=float("nan"))},
    ],
    ids=str,
)
def test_what_the_kernels_cannot_count_is_refused(changes: dict[str, object]) -> None:
    refusal(replace(MOE, **changes))


@pytest.mark.parametrize(
    "gate",
    [
        Gate(function="gelu"),
        Gate(limit=7.0, function="gelu_tanh"),
        Gate(function="relu2", gated=False),
        Gate(gated=False),
    ],
    ids=str,
)
def test_an_activation_that_the_kernels_do_not_compute_is_refused_by_its_words(gate: Gate) -> None:
    said = refusal(replace(MOE, gate=gate))
    assert all(word in said for word in gate.words - {"gate:silu", "gate:clamped"})


def test_a_missing_compiler_is_refused_with_the_command(with_cuda_torch: pytest.MonkeyPatch) -> None:
    with_cuda_torch.setattr(MODULE, "_version", lambda name: None)
    answer = verdict(backend_object, LINEAR)
    assert isinstance(answer, No) and "cuda-bindings is not installed" in answer.reason
    assert "pip install 'cuda-bindings>=12.8'" in answer.fix
    assert "triton" in refusal(QUANTIZE)


@pytest.mark.parametrize(
    ("found", "taken"), [("12.6.2", False), ("12.8.0", True), ("13.0.3", True), ("14.0rc1", True)]
)
def test_old_compilers_are_refused(with_cuda_torch: pytest.MonkeyPatch, found: str, taken: bool) -> None:
    with_cuda_torch.setattr(MODULE, "_version", lambda name: found)
    assert isinstance(verdict(backend_object, LINEAR), Yes if taken else No)


def test_operators_refuse_tensors_of_other_devices() -> None:
    packed = Sm90Layout().pack(random_weight(64, 64))
    with pytest.raises(BackendError, match=r"9\.0"):
        ops.linear(torch.zeros(1, 64, dtype=torch.bfloat16), packed["codes"], packed["scales"], None)
    with pytest.raises(BackendError, match="cpu"):
        ops.quantize(torch.zeros(1, 64), "even/even")


def test_gate_up_and_down_have_layouts_of_their_own() -> None:
    one = CudaMarlinBackend()
    assert one.layout(MOE, "down").id == one.layout(LINEAR).id == "sm90-64x64"
    assert one.layout(MOE, "gate_up").id == "sm90-64x64-gate-up"
    assert (
        one.layout(replace(MOE, gate=Gate(interleaved=True)), "gate_up").id
        == "sm90-64x64-gate-up-interleaved"
    )


@pytest.mark.parametrize(("m", "at_least"), [(1, 8), (300, 2400), (10**6, 1 << 18)])
def test_a_moe_layer_says_what_it_needs(m: int, at_least: int) -> None:
    problem = Problem(op="moe", n=768, k=2048, experts=128, top_k=8, m=m, device=H200)
    needed = compute.moe_bytes(m, 8, 128, 768, 2048)
    assert 2 * at_least * (768 + 2048) <= needed < 8 << 30  # a pass bounds it
    answer = verdict(backend_object, problem)
    assert isinstance(answer, No) or answer.temporary_bytes == needed
