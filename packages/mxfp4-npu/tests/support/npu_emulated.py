"""The backend on the emulated torch_npu: tensors are on the CPU, questions are about an A5."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from npu_torch import module

from mxfp4_core.backend import Device, No, Problem, Verdict
from mxfp4_npu import vendor
from mxfp4_npu.backend import NpuBackend

A5 = Device("npu", "Ascend950PR_9589", "emulated A5")


class EmulatedNpu(NpuBackend):
    """The backend, for which the CPU is an A5 and whose reports say that it is none."""

    description = "EMULATED: " + NpuBackend.description
    numerics = replace(NpuBackend.numerics, emulated=True)

    def supports(self, problem: Problem) -> Verdict:
        """Answer for an A5 whatever the device."""
        answer = super().supports(replace(problem, device=A5))
        if isinstance(answer, No):
            return answer
        numerics = None if answer.numerics is None else replace(answer.numerics, emulated=True)
        return replace(answer, note=f"emulated {answer.note}".strip(), numerics=numerics)


@contextmanager
def emulated() -> Iterator[None]:
    """Let torch_npu be the emulated one, and the CPU its device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_npu", module())
        patch.setattr(vendor, "computes", lambda kind: kind in ("npu", "cpu"))
        yield
