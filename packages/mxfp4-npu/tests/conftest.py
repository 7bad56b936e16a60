"""Settings that all tests of this package share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
for folder in (Path(__file__).parent / "support", ROOT / "tools"):  # pytest's importlib mode does not
    sys.path.insert(0, str(folder))


@pytest.fixture
def emulated() -> Iterator[None]:
    """Let torch_npu be the emulated one, and the CPU its device."""
    from npu_emulated import emulated

    with emulated():
        yield
