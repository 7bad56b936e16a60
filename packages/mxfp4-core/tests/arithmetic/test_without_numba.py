"""The core without numba: the same bytes by torch operations, and one line in the log that says so."""

import hashlib
import os
import subprocess
import sys

import torch

from mxfp4_core import MxTensor, dequantize, quantize
from mxfp4_core.arithmetic.formats import formats
from mxfp4_core.testing.hard_weights import hard_weights

SCRIPT = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import logging
logging.basicConfig(level=logging.INFO, format="LOG %(name)s %(message)s", stream=sys.stdout)
import mxfp4_core
from mxfp4_core.arithmetic.formats import formats
from test_without_numba import digest
print("BYTES", *(digest(form) for form in formats()))
"""


def digest(form: str) -> str:
    """Return a hash of everything that quantising and dequantising hard weights gives."""
    found = hashlib.sha256()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        made: MxTensor = quantize(hard_weights(dtype)[::3], format=form, nonfinite="nan")
        for tensor in (*made.parts.values(), dequantize(made), dequantize(made, dtype=torch.float16)):
            found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def run(*blocked: str) -> str:
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    script = SCRIPT.format(blocked=blocked)
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_the_same_bytes_and_one_line_that_says_so() -> None:
    printed = run("numba", "llvmlite", "typer", "rich")
    said = [line for line in printed.splitlines() if line.startswith("LOG mxfp4_core")]
    assert len(said) == 1
    assert "numba is not installed" in said[0]
    assert "pip install './packages/mxfp4-core[cpu]'" in said[0]
    assert f"BYTES {' '.join(map(digest, formats()))}" in printed


def test_nothing_is_said_where_it_is_installed() -> None:
    assert "LOG mxfp4_core" not in run()
