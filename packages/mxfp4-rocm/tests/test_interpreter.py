"""AITER's own Triton sources in Triton's interpreter, end to end on operands that our code prepared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parent / "support" / "interpret_aiter.py"


def test_quantiser_matmuls_and_experts_equal_the_reference(wheel_files: Path) -> None:
    env = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, str(SCRIPT), str(wheel_files)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
