"""Every Triton kernel that is called, AITER's and ours, compiled for AMD's GPUs without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parent / "support" / "compile_aiter.py"
SCALED = "v_mfma_scale_f32_"
"""How the names of the matrix instructions begin that take FP4 and scales."""


def compiled(wheel: Path, cache: Path, arch: str, *kernels: str) -> dict[str, dict[str, object]]:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), str(wheel), arch, *kernels]
    env["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_on_gfx950_fp4_goes_to_the_scaled_matrix_instruction(wheel_files: Path, tmp_path: Path) -> None:
    """W4A4 is the scaled instruction and nothing else, W4A16 the one of bfloat16; no register is spilled."""
    scaled, widened = ("gemm", "preshuffled", "experts-w4a4"), ("experts-w4a16",)
    others = ("reduce", "quantiser", "own-quantizer")
    found = compiled(wheel_files, tmp_path, "gfx950", *scaled, *widened, *others)
    for name in scaled:
        matrix = found[name]["matrix"]
        assert matrix and all(one.startswith(SCALED) and one.endswith("f8f6f4") for one in matrix), (
            name,
            matrix,
        )
    for name in widened:
        assert found[name]["matrix"] and all(one.endswith("bf16") for one in found[name]["matrix"]), found[
            name
        ]
    assert not any(found[name]["matrix"] for name in others)
    assert {one["spilled"] for one in found.values()} == {0}


def test_on_gfx942_the_kernel_that_widens_compiles(wheel_files: Path, tmp_path: Path) -> None:
    """And both quantizers. FP4 by FP4 does not: this Triton refuses it, as the backend does."""
    found = compiled(wheel_files, tmp_path, "gfx942", "experts-w4a16", "quantiser", "own-quantizer")
    assert all(one.endswith("bf16") for one in found["experts-w4a16"]["matrix"])
    assert {one["spilled"] for one in found.values()} == {0}


def test_on_gfx90a_weights_are_quantised_by_the_same_kernel(wheel_files: Path, tmp_path: Path) -> None:
    found = compiled(wheel_files, tmp_path, "gfx90a", "own-quantizer")
    assert found["own-quantizer"]["spilled"] == 0 and found["own-quantizer"]["bytes"]
