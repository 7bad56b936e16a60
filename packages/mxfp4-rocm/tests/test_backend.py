"""Verdicts, the rules that choose a kernel, and what is said about a machine that lacks something."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import rocm_emulated
from rocm_emulated import GFX950

from mxfp4_core.backend import (
    GPT_OSS_SWIGLU,
    SILU,
    Device,
    Gate,
    No,
    Problem,
    TorchBuild,
    Yes,
    choices_of,
    select_backend,
    settled,
    verdict,
)
from mxfp4_core.cli import main
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import BackendError, ConfigError
from mxfp4_core.jobs import plan_checkpoint
from mxfp4_rocm import backend
from mxfp4_rocm.contract import Contract
from mxfp4_rocm.rules import ROUNDED_TWICE

ROOT = Path(__file__).resolve().parents[3]
LINEAR = Problem(op="linear", n=4096, k=4096, activation="mxfp4", device=GFX950)
MOE = Problem(op="moe", n=1024, k=2048, experts=8, top_k=2, activation="mxfp4", device=GFX950)


def yes(problem: Problem) -> Yes:
    answer = verdict(backend, problem)
    assert isinstance(answer, Yes), answer
    return answer


def no(problem: Problem) -> No:
    answer = verdict(backend, problem)
    assert isinstance(answer, No), answer
    return answer


@pytest.fixture
def on_hip(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A torch that is built for HIP, so that what is installed here counts."""
    rocm_emulated.forget()
    build = TorchBuild("2.13.0+rocm7.0", None, "7.0")
    monkeypatch.setattr(sys.modules["mxfp4_rocm.backend"], "torch_build", lambda: build)
    monkeypatch.setattr(sys.modules["mxfp4_rocm.backend"], "has_triton", lambda: True)
    yield
    monkeypatch.undo()
    rocm_emulated.forget()


@pytest.mark.parametrize(
    ("problem", "provider", "layout", "said"),
    [
        (LINEAR, "aiter gemm_a4w4", "aiter-16x16", "at least 256"),
        (replace(LINEAR, n=255), "aiter gemm_afp4wfp4 (Triton)", "aiter-raw-256", "n = 255 is below 256"),
        (replace(LINEAR, activation="auto"), "aiter gemm_a4w4", "aiter-16x16", "W4A4"),
        (replace(LINEAR, activation="none"), "aiter fused_moe_mxfp4 (Triton)", "aiter-raw-128-bf16", "W4A16"),
        (
            replace(LINEAR, options={"gemm": "triton"}),
            "aiter gemm_afp4wfp4 (Triton)",
            "aiter-raw-256",
            "as asked for",
        ),
        (MOE, "aiter fused_moe", "aiter-16x16-experts", "SiLU without biases"),
        (replace(MOE, bias=True), "aiter fused_moe_mxfp4 (Triton)", "aiter-raw-128", "leaves out"),
        (replace(MOE, gate=Gate(limit=10.0)), "aiter fused_moe_mxfp4 (Triton)", "aiter-raw-128", "clamped"),
        (
            replace(MOE, gate=Gate(function="relu2", gated=False), activation="auto"),
            *("aiter fused_moe_mxfp4 (Triton)", "aiter-raw-128", "gate:none, gate:relu2, and fused_moe"),
        ),
        (
            replace(MOE, gate=Gate(function="gelu")),
            "aiter fused_moe_mxfp4 (Triton)",
            "aiter-raw-128",
            "gate:gelu",
        ),
        (
            replace(MOE, gate=GPT_OSS_SWIGLU, activation="auto"),
            "aiter fused_moe_mxfp4 (Triton)",
            "aiter-raw-128-bf16",
            "W4A16",
        ),
        (
            replace(MOE, options={"moe": "triton"}),
            "aiter fused_moe_mxfp4 (Triton)",
            "aiter-raw-128",
            "as asked",
        ),
        (replace(MOE, activation="none"), "aiter fused_moe_mxfp4 (Triton)", "aiter-raw-128-bf16", "W4A16"),
    ],
    ids=str,
)
def test_the_rules_choose_and_say_why(problem: Problem, provider: str, layout: str, said: str) -> None:
    answer = yes(problem)
    assert (answer.provider, answer.layout) == (provider, layout)
    assert said in answer.note


def test_the_rules_of_rounding_are_those_of_the_kernels() -> None:
    fused = yes(MOE).numerics
    assert fused is not None
    assert (fused.activation_profile, fused.hidden, fused.scale_byte_255) == (
        "aiter-hip-0.1.7",
        "input",
        "refused",
    )
    twice, biased = yes(replace(MOE, bias=True)).numerics, yes(replace(LINEAR, bias=True)).numerics
    assert twice is not None and (twice.activation_profile, twice.hidden) == ("even/even", "float32")
    assert biased is not None and biased.product_error == ROUNDED_TWICE
    widened = yes(replace(LINEAR, activation="none")).numerics
    assert widened is not None and widened.scale_bytes == (0, 252) and widened.activation == "none"
    own = yes(replace(LINEAR, options={"quantizer": "aiter"})).numerics
    assert own is not None and own.activation_profile == "aiter-triton-0.1.7"


@pytest.mark.parametrize(
    ("problem", "reason", "fix"),
    [
        (replace(LINEAR, device=Device("cuda", "sm_90")), "gfx95", "backend of this device"),
        (replace(LINEAR, device=Device("hip", "gfx942")), "gfx942", "petit"),
        (replace(LINEAR, dtype="float16"), "float16", "bfloat16"),
        (replace(LINEAR, n=2**31), "32 bits", "shards"),
        (replace(MOE, experts=5000, total_experts=5000), "5000", "expert parallelism"),
        (replace(MOE, gate=Gate(limit=-1.0)), "limit", "swiglu_limit"),
        (replace(LINEAR, n=128, options={"gemm": "asm"}), "256 features", "triton"),
        (replace(MOE, bias=True, options={"moe": "fused"}), "biases", "triton"),
        (replace(MOE, activation="none", options={"moe": "fused"}), "quantises", "triton"),
        (replace(LINEAR, format="mxfp8"), "mxfp8", "another backend"),
    ],
    ids=str,
)
def test_what_is_refused_has_a_reason_and_a_fix(problem: Problem, reason: str, fix: str) -> None:
    answer = no(problem)
    assert reason in answer.reason and fix in answer.fix


def test_without_triton_it_says_so_before_a_call(on_hip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["mxfp4_rocm.backend"], "has_triton", lambda: False)
    for problem in (LINEAR, replace(LINEAR, op="quantize")):
        answer = backend.supports(problem)
        assert (
            isinstance(answer, No)
            and "Triton is not installed" in answer.reason
            and "pip show torch" in answer.fix
        )


def test_without_aiter_it_says_what_to_install(on_hip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mxfp4_rocm.contract.find_spec", lambda name: None
    )  # it may be here: on the machine that this is for
    answer = no(LINEAR)
    assert "not installed" in answer.reason and "pip install amd-aiter==" in answer.fix


def test_another_package_of_that_name_is_named(on_hip: None) -> None:
    with rocm_emulated.aiter("stranger"):
        answer = no(LINEAR)
    assert "another project" in answer.reason and "stranger" in answer.reason
    assert answer.fix.startswith("pip uninstall aiter")


def test_an_aiter_that_is_too_old_is_named_by_what_it_lacks(
    on_hip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Contract({}, {"gemm_a4w4": "no gemm_a4w4", "gemm_afp4wfp4": "no gemm_afp4wfp4 in aiter.ops"})
    monkeypatch.setattr("mxfp4_rocm.contract.installed", lambda: old)
    answer = no(LINEAR)
    assert "no gemm_afp4wfp4 in aiter.ops" in answer.reason and "pip install" in answer.fix


def test_each_aiter_that_is_installed_is_taken(on_hip: None) -> None:
    for version, rule in (("wheel", "aiter-hip-0.1.7"), ("head", "aiter-hip")):
        with rocm_emulated.aiter(version):
            numerics = yes(MOE).numerics
            assert numerics is not None and numerics.activation_profile == rule
            assert yes(LINEAR).provider == "aiter gemm_a4w4"


def test_a_question_about_another_machine_is_answered_for_what_was_proven() -> None:
    assert yes(LINEAR).provider == "aiter gemm_a4w4"


def test_few_tokens_have_their_own_kernel_on_the_same_weights() -> None:
    rows = choices_of(backend, LINEAR)
    assert [(row.first, row.last, row.kernel) for row in rows] == [
        (1, 31, "gemm_afp4wfp4_preshuffle"),
        (32, 64, "gemm_a4w4"),
    ]
    assert [row.kernel for row in choices_of(backend, replace(LINEAR, n=64))] == ["gemm_afp4wfp4"]


@pytest.mark.parametrize("options", [{"gemm": "hip"}, {"kernel": "asm"}, {"quantizer": True}], ids=str)
def test_options_that_it_does_not_have_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        backend.check_options(options)


def test_it_is_chosen_on_its_device_and_nowhere_else() -> None:
    chosen = select_backend(replace(LINEAR, device=GFX950))
    assert chosen.backend.name == "rocm" and chosen.numerics is not None
    assert chosen.numerics.activation == "mxfp4"
    with pytest.raises(BackendError):
        select_backend(replace(LINEAR, device=Device("hip", "gfx90a"), gate=SILU), backend="rocm")


def test_on_gfx942_aiters_kernel_is_for_those_who_name_it() -> None:
    """It compiles there with bfloat16 tokens (``test_compile.py``); unnamed, the kernels of petit run."""
    device = Device("hip", "gfx942", "AMD Instinct MI300X")
    for problem in (LINEAR, replace(MOE, gate=GPT_OSS_SWIGLU, bias=True)):
        asked = replace(problem, activation="auto", device=device)
        answer = yes(asked)
        assert (answer.provider, answer.layout) == ("aiter fused_moe_mxfp4 (Triton)", "aiter-raw-128-bf16")
        assert "W4A16" in answer.note and answer.numerics is not None and answer.numerics.activation == "none"
        assert choices_of(backend, asked)[0].kernel == "fused_moe_mxfp4"
        assert select_backend(asked, backend="rocm").backend.name == "rocm"
        assert select_backend(asked).backend.name != "rocm"
    assert "gfx90a" in no(replace(LINEAR, activation="none", device=Device("hip", "gfx90a"))).reason


def test_temporary_memory_grows_with_the_tokens() -> None:
    sizes = [yes(replace(MOE, m=m)).temporary_bytes for m in (1, 64, 4096)]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert yes(MOE).temporary_bytes == 0


@pytest.mark.parametrize(
    "problem", [LINEAR, replace(LINEAR, n=64), replace(LINEAR, activation="none"), MOE], ids=str
)
def test_the_layout_of_a_verdict_is_the_one_that_packs(problem: Problem) -> None:
    matrix = "down" if problem.op == "moe" else "weight"
    assert backend.layout(problem, matrix).id == yes(problem).layout


def test_a_plan_says_which_kernel_and_why() -> None:
    config = Mxfp4Config(activation="auto", backend="rocm")
    plan = plan_checkpoint(ROOT / "models" / "qwen3-moe-tiny", config, backend="rocm", device=GFX950)
    said = {fit.runs for fit in plan.fits}
    assert said == {
        "aiter gemm_a4w4: W4A4, n = 256 is at least 256",
        "aiter gemm_a4w4: W4A4, n = 512 is at least 256",
        "aiter fused_moe: W4A4, SiLU without biases",
    }


@pytest.mark.parametrize("named", ["config", "argument"])
def test_a_plan_of_a_config_that_says_nothing_is_w4a4(named: str) -> None:
    config = Mxfp4Config(backend="rocm") if named == "config" else Mxfp4Config()
    model = ROOT / "models" / "qwen3-moe-tiny"
    plan = plan_checkpoint(model, config, backend=None if named == "config" else "rocm", device=GFX950)
    assert {fit.runs.split(":")[0] for fit in plan.fits} == {"aiter gemm_a4w4", "aiter fused_moe"}
    assert all(fit.runs.split(": ")[1].startswith("W4A4") for fit in plan.fits)
    assert all("activation auto is mxfp4" in fit.reason for fit in plan.fits)
    asked = Mxfp4Config(backend="rocm", activation="none")
    assert all("W4A16" in fit.runs for fit in plan_checkpoint(model, asked, device=GFX950).fits)
    mixed = Mxfp4Config(backend="rocm", overrides=[{"pattern": "o_proj", "activation": "none"}])
    said = {fit.runs.split(": ")[1][:5] for fit in plan_checkpoint(model, mixed, device=GFX950).fits}
    assert said == {"W4A4,", "W4A16"}


@pytest.mark.parametrize(
    ("more", "told"), [([], "auto is mxfp4"), (["--activation", "none"], "W4A16: weights")]
)
def test_the_doctor_asks_as_a_model_would_be_loaded(
    more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for backend_named in (["--backend", "rocm"], []):
        with pytest.raises(SystemExit) as ended:
            main(["doctor", "--device", "hip:gfx950", *backend_named, *more])
        assert ended.value.code == 0 and told in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["doctor", "--device", "hip:gfx942", *more])
    assert "mxfp4" not in capsys.readouterr().out.partition("auto is")[2].partition("\n")[0]


def test_nobody_says_it_and_backends_differ() -> None:
    gfx942, cuda = Device("hip", "gfx942"), Device("cuda", "sm_90")
    assert settled(Mxfp4Config(), [GFX950]).activation == "auto"
    assert settled(Mxfp4Config(), [cuda, GFX950]).activation == "auto"
    for device in (gfx942, cuda, Device("cpu", "x86_64")):
        assert settled(Mxfp4Config(), [device]).activation == "none"
    assert settled(Mxfp4Config(backend="petit"), [gfx942]).activation == "none"
    assert settled(Mxfp4Config(backend="reference"), [GFX950]).activation == "none"
    for word in ("none", "mxfp4", "fp8"):
        assert settled(Mxfp4Config.from_dict({"activation": word}), [GFX950]).activation == word
