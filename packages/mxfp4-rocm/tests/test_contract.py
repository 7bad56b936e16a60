"""What is called of AITER, compared with the wheel; and what is said where something has moved."""

from __future__ import annotations

import ast
import inspect
import shutil
import tomllib
from pathlib import Path

import pytest
import rocm_emulated
import vendor_wheels
from rocm_emulated import HERE

from mxfp4_rocm import contract, vendor
from mxfp4_rocm.limits import PROVEN
from mxfp4_rocm.wheel import CONTRACT


def test_the_wheel_is_what_was_proven(wheel_files: Path) -> None:
    """Where this fails, the message says what has moved."""
    found = contract.read(wheel_files / "aiter")
    assert not found.findings, found.missing(*found.findings)
    assert dict(found.calls) == dict(CONTRACT.calls)
    assert found.fused_profile == CONTRACT.fused_profile
    assert found.quantizer_profile == CONTRACT.quantizer_profile


def test_the_emulated_wheel_has_the_arguments_of_the_real_one() -> None:
    found = contract.read(HERE / "wheel" / "aiter")
    assert not found.findings
    assert {name: each.arguments for name, each in found.calls.items()} == {
        name: each.arguments for name, each in CONTRACT.calls.items()
    }


def test_the_head_of_the_repository_is_told_apart_by_what_it_has() -> None:
    found = contract.read(HERE / "head" / "aiter")
    assert not found.findings
    assert (found.fused_profile, found.quantizer_profile) == ("aiter-hip", "aiter-triton")
    assert "out" not in found.calls["gemm_a4w4"].arguments and "dtype" in found.calls["gemm_a4w4"].arguments
    assert found.calls["fused_moe_mxfp4"].module == "aiter.ops.triton.moe.moe_op_mxfp4"


def test_the_extra_brings_the_wheel_that_was_proven() -> None:
    wheel = vendor_wheels.WHEELS["amd-aiter"]
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["kernels"] == [f"amd-aiter=={wheel.version}"]
    assert f"{wheel.project} {wheel.version}" == PROVEN


def changed(tmp_path: Path, file: str, old: str, new: str) -> contract.Contract:
    """Read a copy of the emulated wheel in which one thing is different."""
    shutil.copytree(HERE / "wheel" / "aiter", tmp_path / "aiter")
    path = tmp_path / "aiter" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return contract.read(tmp_path / "aiter")


def test_an_argument_that_was_renamed_is_named(tmp_path: Path) -> None:
    found = changed(tmp_path, "ops/triton/moe_op_mxfp4.py", "B_mx_scale", "weight_mx_scale")
    assert not found.has("fused_moe_mxfp4") and found.has("gemm_a4w4")
    said = found.missing("fused_moe_mxfp4")
    assert "has no argument B_mx_scale" in said and "weight_mx_scale" in said


def test_one_of_two_arguments_is_enough_and_none_is_not(tmp_path: Path) -> None:
    found = changed(tmp_path, "ops/gemm_op_a4w4.py", "out", "result")
    assert "has no argument out or dtype" in found.missing("gemm_a4w4")


def test_what_the_wheel_hides_behind_torch_is_hidden_in_the_emulation(wheel_files: Path) -> None:
    """Who asks such a function for its arguments learns nothing, on the GPU alone."""

    def hidden(package: Path) -> set[str]:
        found = set()
        for name, call in contract.read(package).calls.items():
            text = (package.parent / (call.module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
            nodes = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
            found |= {name for node in nodes if node.name == call.name and node.decorator_list}
        return found

    assert hidden(wheel_files / "aiter") == hidden(HERE / "wheel" / "aiter") == {"gemm_a4w4"}


@pytest.mark.parametrize("version", ["wheel", "head"])
def test_arguments_are_those_of_the_source_however_it_is_decorated(version: str) -> None:
    with rocm_emulated.aiter(version):
        shown = inspect.signature(vendor.function("gemm_a4w4")).parameters
        assert set(shown) == {"args", "kwargs"}
        assert vendor.takes("gemm_a4w4", "out") is (version == "wheel")
        assert vendor.takes("gemm_a4w4", "dtype") is (version == "head")
        assert not vendor.takes("gemm_a8w8", "out")


def test_a_function_that_is_imported_from_elsewhere_is_not_taken_unseen(tmp_path: Path) -> None:
    found = changed(
        tmp_path,
        "ops/triton/quant.py",
        "def dynamic_mxfp4_quant(",
        "from .other import a, dynamic_mxfp4_quant\ndef b(",
    )
    assert "its arguments are not seen" in found.missing("dynamic_mxfp4_quant")


def test_a_table_is_found_among_several_names_of_an_import(tmp_path: Path) -> None:
    shutil.copytree(HERE / "wheel" / "aiter", tmp_path / "aiter")
    (tmp_path / "aiter" / "ops" / "enum.py").write_text("from .core import ActivationType, QuantType\n")
    assert contract.read(tmp_path / "aiter").has("ActivationType", "QuantType")


def test_a_function_that_has_gone_is_named_with_the_places_where_it_was(tmp_path: Path) -> None:
    found = changed(tmp_path, "ops/triton/gemm_afp4wfp4.py", "def gemm_afp4wfp4(", "def gemm_fp4(")
    assert found.missing("gemm_afp4wfp4") == (
        "no gemm_afp4wfp4 in aiter.ops.triton.gemm_afp4wfp4 or aiter.ops.triton.gemm.basic.gemm_afp4wfp4"
    )


def test_another_package_of_that_name_is_no_aiter() -> None:
    with rocm_emulated.aiter("stranger"):
        assert contract.installed() is None
        found = contract.stranger()
        assert found is not None and found.endswith("__init__.py")
    with rocm_emulated.aiter("head"):
        assert contract.stranger() is None and contract.installed() is not None
