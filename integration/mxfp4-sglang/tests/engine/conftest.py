"""Tests inside SGLang's own environment (``nox -s engines``): its real classes, on a CPU, without a server.

Importing SGLang takes seconds, and each process registers our plug-in once, as SGLang does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from sglang.srt.plugins import load_plugins

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
load_plugins()


@pytest.fixture(autouse=True)
def _bfloat16() -> None:
    """Build layers as SGLang does: in the dtype of the model."""
    torch.set_default_dtype(torch.bfloat16)
