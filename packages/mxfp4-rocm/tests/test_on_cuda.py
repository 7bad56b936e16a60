"""AITER's own Triton sources on an NVIDIA GPU, where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "support" / "cuda_aiter.py"


@pytest.mark.skipif(
    torch.version.cuda is None or not torch.cuda.is_available(),
    reason="no NVIDIA GPU: nothing to compile AITER for",
)
def test_aiter_computes_the_reference_on_another_chip(wheel_files: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(wheel_files)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "of the bound" in done.stdout
