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
def wheel_files() -> Path:
    """The proven wheel, unpacked: its Python files, kernels and tuned configurations."""
    import vendor_wheels

    folder = vendor_wheels.unpacked("amd-aiter")
    if folder is None:
        reason = vendor_wheels.missing("amd-aiter")
        if vendor_wheels.required():
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(params=["wheel", "head"])
def version(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each AITER, in the place of the real one."""
    from rocm_emulated import aiter

    with aiter(request.param):
        yield request.param
