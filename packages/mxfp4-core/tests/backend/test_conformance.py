"""The shipped suite on the backend that the command line names, and on the emulated device."""

from __future__ import annotations

import pytest

from mxfp4_core.backend.protocol import Backend
from mxfp4_core.testing import BackendConformance, EmulatedBackend


class TestNamed(BackendConformance):
    pass


class TestEmulated(BackendConformance):
    backend_name = "emulated"

    @pytest.fixture
    def backend(self) -> Backend:
        return EmulatedBackend()


class TestQuantising(BackendConformance):
    """A kernel that multiplies quantised activations and nothing else."""

    backend_name = "emulated"

    @pytest.fixture
    def backend(self) -> Backend:
        return EmulatedBackend(quantises=True)
