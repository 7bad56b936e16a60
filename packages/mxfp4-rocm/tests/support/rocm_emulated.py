"""The backend on the CPU, with a strict AITER in the place of the real one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from unittest.mock import patch

from mxfp4_core import _plugins
from mxfp4_core.backend import Device, No, Problem, Rank, Verdict, registry
from mxfp4_rocm import contract, vendor
from mxfp4_rocm.backend import RocmBackend
from mxfp4_rocm.tokens import quantizer_rule

HERE = Path(__file__).parent
GFX950 = Device("hip", "gfx950", "AMD Instinct MI355X")


class EmulatedRocm(RocmBackend):
    """What the backend answers on gfx950, computed on the CPU; every report says that it is emulated."""

    name = "rocm-emulated"
    description = "AMD CDNA4 emulated on the CPU: a strict AITER that computes in float32"
    automatic_on: frozenset[str] = frozenset()

    numerics = replace(RocmBackend.numerics, emulated=True)

    def contract(self) -> contract.Contract | No:
        return contract.installed() or No("no tree beside this file is in place", "use rocm_emulated.aiter")

    def supports(self, problem: Problem) -> Verdict:
        if problem.device.type != "cpu":
            return No(
                f"the device is {problem.device}, this one is emulated on CPUs", "use the backend 'rocm'"
            )
        answer = super().supports(replace(problem, device=GFX950))
        if isinstance(answer, No):
            return answer
        numerics = replace(answer.numerics or self.numerics, emulated=True)
        return replace(answer, note=f"emulated; {answer.note}", numerics=numerics, rank=int(Rank.EMULATED))


backend = EmulatedRocm()
"""The object of the entry point that ``registered`` makes."""


@contextmanager
def registered() -> Iterator[None]:
    """Register the emulated backend beside the installed ones, as a package of its own would."""
    real = _plugins.entry_points
    point = EntryPoint("rocm-emulated", "rocm_emulated:backend", _plugins.BACKENDS)

    def entry_points(group: str) -> list[EntryPoint]:
        return [*real(group=group), *([point] if group == _plugins.BACKENDS else [])]

    with patch.object(_plugins, "entry_points", entry_points):
        registry.refresh()
        yield
    registry.refresh()


@contextmanager
def aiter(version: str) -> Iterator[None]:
    """Make ``import aiter`` find a tree beside this file: the ``wheel`` that was proven, the repository's ``head``."""
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "aiter"}
    for name in kept:
        del sys.modules[name]
    sys.path.insert(0, str(HERE / version))
    forget()
    try:
        yield
    finally:
        sys.path.remove(str(HERE / version))
        for name in [name for name in sys.modules if name.partition(".")[0] == "aiter"]:
            del sys.modules[name]
        sys.modules.update(kept)
        forget()


def forget() -> None:
    """Forget what was found of an earlier AITER."""
    vendor.forget()
    contract.installed.cache_clear()
    quantizer_rule.cache_clear()
