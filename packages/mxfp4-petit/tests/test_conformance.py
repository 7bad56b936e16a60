"""The shipped suite: on the emulated device, and where there is a GPU on the real one, for each provider."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mxfp4_core.backend import Backend, Device
from mxfp4_core.testing import BackendConformance
from mxfp4_petit import emulated
from mxfp4_petit.backend import PetitBackend

MI300 = Device("hip", "gfx942", "AMD Instinct MI300X")


class TestPortableEmulated(BackendConformance):
    backend_name = "petit, our kernels, emulated"
    target = MI300

    @pytest.fixture
    def backend(self) -> Backend:
        return emulated.EmulatedPortable()


class TestVendorEmulated(BackendConformance):
    backend_name = "petit, petit-kernel, emulated"
    target = MI300

    @pytest.fixture
    def backend(self) -> Backend:
        return emulated.EmulatedVendor()

    @pytest.fixture(autouse=True)
    def stand_in(self) -> Iterator[None]:
        with emulated.stand_in():
            yield


class TestPortable(BackendConformance):
    backend_name = "petit"
    target = Device("cuda", "sm_90", "NVIDIA H200")  # the other variant of the layout

    @pytest.fixture
    def backend(self) -> Backend:
        return PetitBackend("triton")


class TestVendor(BackendConformance):
    backend_name = "petit"

    @pytest.fixture
    def backend(self) -> Backend:
        return PetitBackend("petit_kernel")
