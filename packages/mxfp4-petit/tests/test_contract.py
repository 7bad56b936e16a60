"""What is called of petit-kernel, compared with the wheel; nothing of it that needs a device is imported."""

from __future__ import annotations

import ast
import runpy
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
import vendor_wheels

from mxfp4_core.testing.samples import random_weight
from mxfp4_petit import MoeLayout
from mxfp4_petit.vendor.limits import PROVEN

CALLED = {
    "mul_mxfp4_a16": ["a", "b", "s", "global_scale", "size_m", "size_n", "size_k", "solution_id"],
    "repack_mxfp4": ["qw", "size_n", "size_k"],
    "process_mxfp4_scales": ["scales", "size_n", "size_k"],
}
"""The first is called; the other two write the layout that our packing equals."""

BOUND = (
    *("mul_mxfp4_a16", "process_mxfp4_scales", "repack_nvfp4"),  # repack_mxfp4 calls the last
    *("amdgcn-amd-amdhsa--gfx90a", "amdgcn-amd-amdhsa--gfx942"),
)
"""What the binary holds: functions, and code for these chips."""


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    return {one.name: one for one in ast.parse(path.read_text()).body if isinstance(one, ast.FunctionDef)}


def test_the_functions_have_the_arguments_that_are_passed(wheel_files: Path) -> None:
    found = functions(wheel_files / "petit_kernel" / "__init__.py")
    for name, arguments in CALLED.items():
        assert name in found, f"petit_kernel.{name} is gone"
        have = [argument.arg for argument in found[name].args.args]
        assert len(have) == len(arguments), f"petit_kernel.{name} now takes {have}, {arguments} are passed"
        if name == "mul_mxfp4_a16":
            assert have == arguments


def test_the_bindings_are_there(wheel_files: Path) -> None:
    wheel = vendor_wheels.find("petit-kernel")
    assert wheel is not None
    with zipfile.ZipFile(wheel) as files:
        (binary,) = (name for name in files.namelist() if name.endswith(".so"))
        text = files.read(binary)
    missing = [name for name in BOUND if name.encode() not in text]
    assert not missing, f"the binary no longer has {missing}"


@pytest.mark.parametrize("kind", ["native", "petit"])
def test_layouts_of_experts_equal_the_vendors_own_code(wheel_files: Path, kind: str) -> None:
    theirs = runpy.run_path(str(wheel_files / "petit_kernel" / "moe_mxfp4.py"))
    weight = random_weight(2, 512, 512, scales=(0, 255))
    want = theirs["repack_moe_kernel_layout"](
        weight.codes, weight.scales, layout=theirs["MoeKernelLayout"](f"{kind}_mxfp4")
    )
    packed = MoeLayout("native" if kind == "native" else "petit").pack(weight)
    assert torch.equal(packed["codes"], want[0]) and torch.equal(packed["scales"], want[1])


def test_the_kernel_for_experts_is_still_what_was_read(wheel_files: Path) -> None:
    """Decision 0028 gives these as reasons not to call it: one gate, and an output that is added to."""
    source = (wheel_files / "petit_kernel" / "__init__.py").read_text()
    found = functions(wheel_files / "petit_kernel" / "__init__.py")
    body = ast.unparse(found["fused_moe_bf16_mxfp4"])
    assert "out.zero_()" in body and "_FUSED_MOE_BF16_MXFP4_BIAS_SOLUTION_ID" in body
    solution = source.split("_FUSED_MOE_BF16_MXFP4_BIAS_SOLUTION_ID = ", 1)[1].split("\n)\n", 1)[0]
    assert "openai_swiglu" in solution and "one_stage" in solution


def test_the_extra_asks_for_a_proven_version() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    (needed,) = project["optional-dependencies"]["kernels"]
    assert needed.split(";")[0] == f"petit-kernel=={PROVEN[-1]}"
    assert vendor_wheels.WHEELS["petit-kernel"].version == PROVEN[-1]
