"""Verdicts: what is missing is said, with what to do; a question about another machine is answered for that machine."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from mxfp4_core.backend import Device, No, Problem, Yes
from mxfp4_npu import backend, vendor

A5 = Device("npu", "Ascend950PR_9589")
LINEAR = Problem(op="linear", n=128, k=512, activation="auto", device=A5)
MOE = Problem(op="moe", n=64, k=64, experts=4, top_k=2, activation="auto", device=A5)


@pytest.fixture(autouse=True)
def nothing_of_torch_npu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vendor, "_version", lambda: None)
    monkeypatch.setattr(vendor, "_DEVICES", tmp_path)
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)


def refused(problem: Problem) -> No:
    answer = backend.supports(problem)
    assert isinstance(answer, No) and answer.reason and answer.fix
    return answer


def test_a_question_about_another_machine() -> None:
    answer = backend.supports(LINEAR)
    assert isinstance(answer, Yes) and answer.numerics is not None
    assert (answer.numerics.activation, answer.numerics.activation_profile) == ("mxfp4", "ascend-single")
    dual = backend.supports(replace(LINEAR, format="mxfp4-dual"))
    assert (
        isinstance(dual, Yes) and dual.numerics is not None and dual.numerics.activation_profile == "ascend"
    )


@pytest.mark.parametrize("arch", ["Ascend910B3", "Ascend910_9392", "Ascend310P3"])
def test_other_generations_are_refused(arch: str) -> None:
    assert "A5" in refused(replace(LINEAR, device=Device("npu", arch))).reason


def test_a_device_that_was_not_started_is_noted() -> None:
    answer = backend.supports(replace(LINEAR, device=Device("npu", "unknown")))
    assert isinstance(answer, Yes) and "not been started" in answer.note


def test_a_device_without_torch_npu(tmp_path: Path) -> None:
    (tmp_path / "davinci0").touch()
    assert vendor.INSTALL in refused(LINEAR).fix


def test_torch_npu_without_cann(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vendor, "_version", lambda: "2.14.0")
    assert "CANN" in refused(LINEAR).reason


def test_torch_npu_that_does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch  # noqa: F401  # the import is tried where torch is loaded

    (tmp_path / "libascendcl.so").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setattr(vendor, "_version", lambda: "2.14.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libhccl.so: cannot open shared object file')")
    assert "libhccl.so" in refused(LINEAR).reason


@pytest.mark.parametrize(
    ("problem", "gone"),
    [
        (LINEAR, "npu_quant_matmul"),
        (replace(LINEAR, format="mxfp4-dual"), "npu_dual_level_quant_matmul"),
        (MOE, "npu_grouped_matmul"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_operator_that_is_absent(monkeypatch: pytest.MonkeyPatch, problem: Problem, gone: str) -> None:
    module = ModuleType("torch_npu")
    for name in {*vendor.SINGLE, *vendor.DUAL, *vendor.GROUPED} - {gone}:
        setattr(module, name, None)
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    assert gone in refused(problem).reason


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (replace(LINEAR, device=Device("cuda", "sm_90")), "cuda"),
        (replace(LINEAR, dtype="float32"), "float32"),
        (replace(LINEAR, activation="none"), "high precision"),
        (replace(MOE, experts=1025, total_experts=1025), "1024"),
    ],
    ids=["device", "dtype", "activation", "experts"],
)
def test_problems_that_are_refused(problem: Problem, said: str) -> None:
    assert said in refused(problem).reason


def test_experts_of_two_levels_have_no_operator() -> None:
    assert "moe:format:mxfp4-dual" not in backend.features and "format:mxfp4-dual" not in backend.features


def test_importing_the_package_imports_no_torch_npu(tmp_path: Path) -> None:
    (tmp_path / "torch_npu.py").write_text("raise SystemExit('torch_npu was imported')")
    code = "import mxfp4_npu, sys; assert 'torch_npu' not in sys.modules and 'torch' not in sys.modules"
    path = [str(tmp_path), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}; {code}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
