"""Backends and distributions that exist only in a test."""

from __future__ import annotations

from importlib.metadata import Distribution
from pathlib import Path

from mxfp4_core.backend.answers import Numerics, Verdict, Yes
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, Layout
from mxfp4_core.backend.reference.backend import CanonicalLayout
from mxfp4_core.backend.selection import Candidate, Selection

CPU, H200, MI355 = Device("cpu", "x86_64"), Device("cuda", "sm_90", "H200"), Device("hip", "gfx950")


class Toy(Backend):
    """A backend whose every answer is given."""

    description = "a toy"
    features = frozenset({"linear", "dtype:bfloat16"})

    def __init__(
        self, name: str, on: str = "cuda", answer: Verdict | None = None, emulated: bool = False
    ) -> None:
        self.name, self.answer = name, answer or Yes()
        self.automatic_on = frozenset({on})
        self.numerics = Numerics(emulated=emulated)

    def supports(self, problem: Problem) -> Verdict:
        return self.answer

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return CanonicalLayout()


class FakeDistribution(Distribution):
    """A distribution that exists only by name."""

    def __init__(self, name: str, version: str) -> None:
        self._metadata = {"Name": name, "Version": version}

    @property
    def metadata(self) -> dict[str, str]:  # type: ignore[override]  # as much of a message as is read
        return self._metadata

    def read_text(self, filename: str) -> str | None:
        return None

    def locate_file(self, path: object) -> Path:
        raise NotImplementedError


def linear(device: Device = H200) -> Problem:
    return Problem(op="linear", n=64, k=64, device=device)


def line(selection: Selection, name: str) -> Candidate:
    return next(one for one in selection.trace if one.name == name)
