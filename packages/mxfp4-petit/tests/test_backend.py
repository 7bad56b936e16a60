"""Verdicts: which provider, on which device, and what is said where none."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from mxfp4_core.backend import Device, Gate, No, Problem, Rank, Yes, calls, select_backend
from mxfp4_core.backend.build import TorchBuild
from mxfp4_core.errors import BackendError, ConfigError
from mxfp4_core.testing.samples import random_weight, random_x
from mxfp4_petit import backend, devices, emulated
from mxfp4_petit.backend import PetitBackend
from mxfp4_petit.portable import provider as portable
from mxfp4_petit.portable.sizes import WIDEN_FROM
from mxfp4_petit.vendor import ops as vendor_ops
from mxfp4_petit.vendor import provider as vendor

GFX942, GFX90A, GFX950 = (Device("hip", arch) for arch in ("gfx942", "gfx90a", "gfx950"))
LINEAR = Problem(op="linear", n=4096, k=4096, device=GFX942)
MOE = Problem(op="moe", n=1024, k=2048, experts=8, top_k=2, device=GFX942)


@pytest.fixture
def petit_kernel(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with petit-kernel 0.0.5."""
    return with_version(monkeypatch, "0.0.5")


def with_version(monkeypatch: pytest.MonkeyPatch, version: str | None) -> pytest.MonkeyPatch:
    for module in (vendor, __import__("mxfp4_petit.backend", fromlist=["installed"])):
        monkeypatch.setattr(module, "installed", lambda *names: version)
    return monkeypatch


def accepted(problem: Problem, of: PetitBackend = backend) -> Yes:
    answer = of.supports(problem)
    assert isinstance(answer, Yes), answer
    return answer


def refused(problem: Problem, of: PetitBackend = backend) -> str:
    answer = of.supports(problem)
    assert isinstance(answer, No), answer
    return f"{answer.reason} | {answer.fix}"


@pytest.mark.parametrize("problem", [LINEAR, MOE, replace(LINEAR, dtype="float16")], ids=str)
def test_without_petit_kernel_our_own_kernels_serve_everything(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_version(monkeypatch, None)
    answer = accepted(problem)
    assert (answer.provider, answer.layout, answer.rank) == ("triton", "portable-k256", Rank.PORTABLE)


def test_with_petit_kernel_it_serves_linear_and_the_verdict_says_why_not_the_rest(
    petit_kernel: pytest.MonkeyPatch,
) -> None:
    answer = accepted(LINEAR)
    assert (answer.provider, answer.layout) == ("petit_kernel", "petit-kernel-0.0.3")
    assert answer.numerics is not None and answer.numerics.scale_bytes == (17, 247)
    assert answer.numerics.minus_zero == "dropped"
    assert "not by petit-kernel 0.0.5: moe of bfloat16" in accepted(MOE).note
    assert accepted(MOE).provider == "triton"
    assert accepted(replace(LINEAR, dtype="float16")).provider == "triton"
    assert accepted(replace(LINEAR, options={"provider": "triton"})).provider == "triton"


def test_a_version_that_was_not_compared_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_version(monkeypatch, "0.0.4")
    assert accepted(LINEAR).provider == "triton"
    assert "found petit-kernel 0.0.4" in accepted(LINEAR).note
    said = refused(replace(LINEAR, options={"provider": "petit_kernel"}))
    assert "0.0.3 and 0.0.5" in said and "petit-kernel==0.0.5" in said


def test_a_machine_with_rocm_must_have_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_version(monkeypatch, None)
    monkeypatch.setattr(vendor, "torch_build", lambda: TorchBuild("2.13.0+rocm7.0", None, "7.0"))
    assert "CPython 3.12" in refused(replace(LINEAR, options={"provider": "petit_kernel"}))
    monkeypatch.setattr(portable, "torch_build", lambda: TorchBuild("2.13.0+rocm7.0", None, "7.0"))
    monkeypatch.setattr(portable, "importable", lambda name: False)
    assert "pip install 'triton" in refused(LINEAR)


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (replace(LINEAR, device=Device("hip", "gfx1100")), "gfx90a, gfx942 and gfx950"),
        (replace(LINEAR, device=Device("cuda", "sm_75")), "sm_80"),
        (replace(LINEAR, device=Device("npu", "unknown")), "hip and cuda"),
        (replace(LINEAR, device=Device("cpu", "x86_64")), "TRITON_INTERPRET"),
        (replace(LINEAR, n=2**40), "32 bits"),
        (replace(LINEAR, m=2**32), "32 bits"),
        (replace(MOE, experts=5000, total_experts=5000), "expert parallelism"),
        (replace(MOE, gate=Gate(limit=-1.0)), "limit = -1.0"),
        (replace(LINEAR, device=GFX950, options={"provider": "petit_kernel"}), "gfx90a and gfx942"),
        (replace(MOE, options={"provider": "petit_kernel"}), "linear of bfloat16"),
    ],
    ids=str,
)
def test_refusals_say_what_was_seen_and_what_to_do(problem: Problem, says: str) -> None:
    assert says in refused(problem)


@pytest.mark.parametrize("device", [GFX942, GFX90A], ids=str)
@pytest.mark.parametrize("problem", [LINEAR, MOE], ids=str)
def test_it_is_chosen_unnamed_on_chips_without_fp4(problem: Problem, device: Device) -> None:
    assert select_backend(replace(problem, device=device)).backend.name == "petit"


@pytest.mark.parametrize("device", [GFX950, Device("cuda", "sm_90"), Device("cuda", "sm_80")], ids=str)
def test_elsewhere_it_is_taken_by_name_alone(device: Device) -> None:
    for problem in (replace(LINEAR, device=device), replace(MOE, device=device)):
        try:
            assert select_backend(problem).backend.name != "petit"
        except BackendError as error:
            assert "'petit' would if it were named" in str(error)
        chosen = select_backend(problem, backend="petit")
        assert chosen.backend.name == "petit"
        pairs = device.type == "cuda"
        assert chosen.backend.layout(problem).id == ("portable-k128-pairs" if pairs else "portable-k256")


@pytest.mark.parametrize(
    "device", [GFX942, GFX950, *(Device("cuda", arch) for arch in ("sm_80", "sm_90"))], ids=str
)
def test_weights_of_8_bits_are_taken_unnamed_on_every_gpu(device: Device) -> None:
    for problem in (LINEAR, MOE):
        asked = replace(problem, format="mxfp8", device=device)
        chosen = select_backend(asked)
        assert (chosen.backend.name, chosen.fallback) == ("petit", False)
        pairs = "k128-pairs" if device.type == "cuda" else "k256"
        assert chosen.answer is not None and chosen.answer.layout == f"portable-mxfp8-{pairs}"
        assert chosen.backend.layout(asked).id == chosen.answer.layout
    for word in ("mxfp8+input_scale", "mxfp4-dual"):
        with pytest.raises(BackendError, match=r"input-scale|mxfp4-dual"):
            select_backend(replace(LINEAR, format=word, device=device), backend="petit")


def test_petit_kernel_leaves_weights_of_8_bits_to_our_own_kernels(petit_kernel: pytest.MonkeyPatch) -> None:
    answer = accepted(replace(LINEAR, format="mxfp8"))
    assert answer.provider == "triton" and "linear of bfloat16 with mxfp8" in answer.note
    assert "with mxfp8" in refused(replace(LINEAR, format="mxfp8", options={"provider": "petit_kernel"}))


def test_options() -> None:
    backend.check_options({"provider": "petit_kernel"})
    for wrong in ({"provider": "petit-kernel"}, {"providr": "triton"}):
        with pytest.raises(ConfigError, match=r"petit_kernel|did you mean 'provider'"):
            backend.check_options(wrong)


def test_temporary_memory_grows_with_tokens() -> None:
    assert accepted(LINEAR).temporary_bytes == 0
    assert accepted(replace(MOE, m=10)).temporary_bytes == 2 * 20 * (1024 + 2048)
    assert accepted(replace(LINEAR, m=1)).temporary_bytes > 0


def test_many_tokens_of_8_bits_are_widened_in_memory_on_nvidia() -> None:
    own, problem = PetitBackend("triton"), replace(LINEAR, device=Device("cuda", "sm_90"), format="mxfp8")
    assert accepted(replace(problem, m=WIDEN_FROM), own).temporary_bytes == 2 * problem.n * problem.k
    row = own.choices(problem)[-1]
    assert (row.kernel, row.first) == ("torch.matmul", WIDEN_FROM)
    for other in (
        replace(problem, device=GFX942),
        replace(problem, dtype="float16"),
        replace(problem, format="mxfp4"),
    ):
        assert {row.kernel for row in own.choices(other)} == {"triton"}


def test_operators_refuse_a_cpu() -> None:
    with emulated.stand_in():
        own = PetitBackend("triton")
        problem = replace(LINEAR, n=32, k=256)
        packed = calls.pack(own, problem, random_weight(32, 256))
        with pytest.raises(BackendError, match="TRITON_INTERPRET"):
            own.linear(random_x(1, 256), packed, problem)


def test_an_error_of_petit_kernel_is_one_of_ours_and_so_is_its_absence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, problem = random_x(1, 256), replace(LINEAR, n=32, k=256, device=emulated.GFX942)
    packed = calls.pack(emulated.EmulatedVendor(), problem, random_weight(32, 256)).tensors
    operands = packed["codes"], packed["scales"], packed["global_scale"]
    with emulated.stand_in():
        assert vendor_ops.linear(x, *operands, None).shape == (1, 32)
        with pytest.raises(BackendError, match="kErrorKernelShape"):
            vendor_ops.linear(x.half(), *operands, None)
    vendor_ops.library.cache_clear()
    monkeypatch.setitem(sys.modules, "petit_kernel", None)  # it may be here: on the machine that this is for
    with pytest.raises(BackendError, match="importing petit_kernel failed"):
        vendor_ops.linear(x, *operands, None)


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.zeros(2, 512, dtype=torch.bfloat16)[:, ::2]},
        {"b": torch.zeros(2, 500, dtype=torch.int32)},
        {"s": torch.zeros(8, 32, dtype=torch.uint8).T},
        {"global_scale": torch.ones(1, dtype=torch.float64)},
        {"size_n": 16},
        {"size_k": 128},
        {"solution_id": 7},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_stand_in_catches_wrong_calls(change: dict[str, object]) -> None:
    sound = {
        "a": torch.zeros(2, 256, dtype=torch.bfloat16),
        "b": torch.zeros(2, 512, dtype=torch.int32),
        "s": torch.zeros(1, 256, dtype=torch.uint8),
        "global_scale": torch.ones(1),
        **{"size_m": 2, "size_n": 32, "size_k": 256, "solution_id": -1},
    }
    emulated.mul_mxfp4_a16(**sound)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        emulated.mul_mxfp4_a16(**sound | change)  # type: ignore[arg-type]


def test_devices_join_names() -> None:
    assert devices.listed(("a", "b", "c")) == "a, b and c" and devices.listed(("a",)) == "a"
