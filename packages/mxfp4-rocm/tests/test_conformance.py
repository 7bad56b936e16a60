"""The shipped suite: on gfx95x on the real device, everywhere on the emulated one with the AITER that was proven."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rocm_emulated import GFX950, EmulatedRocm, aiter

from mxfp4_core.backend import Backend, Device
from mxfp4_core.testing import BackendConformance


@pytest.fixture(scope="module")
def wheel() -> Iterator[None]:
    with aiter("wheel"):
        yield


class TestRocm(BackendConformance):
    """On a GPU with FP4 matrix units; verdicts and layouts everywhere."""

    backend_name = "rocm"
    target = GFX950


class TestEmulated(BackendConformance):
    """The wheel that was proven, emulated on the CPU."""

    backend_name = "rocm-emulated"

    @pytest.fixture
    def backend(self, wheel: None) -> Backend:
        return EmulatedRocm()

    @pytest.fixture
    def here(self, backend: Backend) -> Device:
        return Device.of("cpu")

    test_importing_it_starts_no_device = None  # another process finds no emulated device; TestRocm does it
