"""The backend on the emulated torch_npu: tensors are on the CPU, questions are about an A5."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
from npu_torch import module

from mxfp4_core import _plugins
from mxfp4_core.backend import Device, No, Problem, Rank, Verdict, registry
from mxfp4_npu import vendor
from mxfp4_npu.backend import NpuBackend

A5 = Device("npu", "Ascend950PR_9589", "emulated A5")


class EmulatedNpu(NpuBackend):
    """The backend, for which the CPU is an A5 and whose reports say that it is none."""

    name = "npu-emulated"
    description = "EMULATED: " + NpuBackend.description
    automatic_on = frozenset[str]()
    numerics = replace(NpuBackend.numerics, emulated=True)

    def supports(self, problem: Problem) -> Verdict:
        """Answer for an A5 whatever the device."""
        answer = super().supports(replace(problem, device=A5))
        if isinstance(answer, No):
            return answer
        numerics = None if answer.numerics is None else replace(answer.numerics, emulated=True)
        note = f"emulated; {answer.note}".removesuffix("; ")
        return replace(answer, note=note, numerics=numerics, rank=int(Rank.EMULATED))


backend = EmulatedNpu()
"""The object of the entry point that ``registered`` makes."""


@contextmanager
def registered() -> Iterator[None]:
    """Register the emulated backend beside the installed ones, as a package of its own would."""
    real = _plugins.entry_points
    point = EntryPoint(backend.name, "npu_emulated:backend", _plugins.BACKENDS)

    def entry_points(group: str) -> list[EntryPoint]:
        return [*real(group=group), *([point] if group == _plugins.BACKENDS else [])]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_plugins, "entry_points", entry_points)
        registry.refresh()
        yield
    registry.refresh()


@contextmanager
def emulated() -> Iterator[None]:
    """Let torch_npu be the emulated one, and the CPU its device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_npu", module())
        patch.setattr(vendor, "computes", lambda kind: kind in ("npu", "cpu"))
        yield
