"""The shipped suite: on an A5; verdicts and layouts on every machine; and on the emulated A5, which is no proof."""

from __future__ import annotations

import pytest
from npu_emulated import A5, EmulatedNpu

from mxfp4_core.backend import Backend
from mxfp4_core.testing import BackendConformance


class TestNpu(BackendConformance):
    backend_name = "npu"
    target = A5


@pytest.mark.usefixtures("emulated")
class TestEmulatedNpu(BackendConformance):
    backend_name = "npu-emulated"

    @pytest.fixture
    def backend(self) -> Backend:
        return EmulatedNpu()
