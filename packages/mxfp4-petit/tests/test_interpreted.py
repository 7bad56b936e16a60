"""Our kernels in Triton's interpreter, in a process of its own: it is chosen before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("script", ["interpreted.py", "interpreted_wide.py"])
def test_the_kernels_are_right_in_the_interpreter(script: str) -> None:
    run = subprocess.run(
        [sys.executable, str(FOLDER / script)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
