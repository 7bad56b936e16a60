"""The host code of AITER's wheel between our calls and its kernels: arguments, marks, and torch's operators."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "support" / "host_aiter.py"


def test_our_calls_pass_through_the_files_of_the_wheel(wheel_files: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(wheel_files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
