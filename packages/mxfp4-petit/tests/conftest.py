"""What the tests of this package share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for folder in (Path(__file__).parent, Path(__file__).resolve().parents[3] / "tools"):
    sys.path.insert(0, str(folder))


@pytest.fixture
def wheel_files() -> Path:
    """The proven wheel of petit-kernel, unpacked: its Python files."""
    import vendor_wheels

    folder = vendor_wheels.unpacked("petit-kernel")
    if folder is None:
        reason = vendor_wheels.missing("petit-kernel")
        if vendor_wheels.required():
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
