"""Settings that all tests of the core share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from mxfp4_core import registry, select
from mxfp4_core.registry import Plugin

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not

# The first example of a test may compile kernels or import torch; a busy machine does the rest.
settings.register_profile("mxfp4", deadline=None)
settings.load_profile("mxfp4")


@pytest.fixture(autouse=True)
def without_the_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose among the backends of the core and of the test: which others are installed is the machine's affair."""
    others = tuple(known.distribution.replace("-", "_") for known in select.KNOWN.values())

    def installed() -> Mapping[str, Plugin]:
        found = registry.installed().items()
        return {name: one for name, one in found if not one.points[0].value.startswith(others)}

    monkeypatch.setattr(select, "installed", installed)
