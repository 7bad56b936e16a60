"""What the suites share: the backend under test, a device for it, and questions to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mxfp4_core.backend import SILU, Backend, Device, Gate, No, Problem, probe, verdict
from mxfp4_core.backend.registry import installed
from mxfp4_core.testing import exercised

ORDINARY: dict[str, dict[str, Any]] = {
    "linear": {"n": 4096, "k": 4096},
    "moe": {"n": 1024, "k": 2048, "experts": 8, "top_k": 2},
    "quantize": {"n": 4096, "k": 4096},
}
"""A problem of each op that a backend which offers the op must take, on a device that it is made for."""


class Fixtures:
    """Override the attributes, or the fixtures, to say what is tested.

    Attributes:
        backend_name: name of the entry point; None leaves it to ``--mxfp4-backend``.
        target: a device that the backend is made for. With it, verdicts and layouts are tested on machines that have
            no such device.
    """

    mxfp4_conformance = True
    backend_name: str | None = None
    target: Device | None = None

    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        """The backend under test, from its entry point."""
        name = self.backend_name or request.config.getoption("--mxfp4-backend") or "reference"
        plugins = installed()
        if name not in plugins:
            pytest.fail(f"no distribution registers the backend {name!r}; installed: {', '.join(plugins)}")
        loaded = plugins[name].load()
        if isinstance(loaded, No):
            pytest.fail(f"the backend {name!r} is broken: {loaded.reason}")
        return loaded

    @pytest.fixture
    def here(self, backend: Backend) -> Device:
        """A device of this machine on which the backend computes; without one the test is skipped."""
        reasons = []
        for found in probe().devices:
            answer = verdict(backend, ordinary(backend, found))
            if not isinstance(answer, No):
                return found
            reasons.append(f"{found}: {answer.reason}")
        pytest.skip(f"no device for {backend.name} here; {'; '.join(reasons)}")

    @pytest.fixture
    def made_for(self, request: pytest.FixtureRequest) -> Device:
        """The device of the verdicts and layouts: ``target``, else one of this machine."""
        found: Device = self.target or request.getfixturevalue("here")
        return found

    @pytest.fixture
    def device(self, here: Device) -> torch.device:
        """The device of ``here`` as torch calls it."""
        return torch.device(here.torch_name)


def ordinary(backend: Backend, device: Device, op: str | None = None) -> Problem:
    """Return an ordinary problem of ``op``, or of the first op that the backend offers."""
    chosen = op or next(name for name in ORDINARY if name in backend.features)
    sizes = ORDINARY[chosen]
    return posed(backend, Problem(op=chosen, device=device, **sizes))  # type: ignore[arg-type]  # chosen is an Op


def posed(backend: Backend, problem: Problem) -> Problem:
    """Return a problem as the backend can take it: a kernel that always quantises x is asked with ``auto``.

    Where the backend takes x in high precision, and where it refuses both, the problem stays as it is.
    """
    if problem.op == "quantize" or not isinstance(verdict(backend, problem), No):
        return problem
    left = replace(problem, activation="auto")
    return problem if isinstance(verdict(backend, left), No) else left


def asking_for(problem: Problem, word: str) -> Problem:
    """Return the problem with one more feature; a word that the core does not know is asked for with ``requires``."""
    kind, _, value = word.partition(":")
    known: dict[str, dict[str, Any]] = {
        problem.op: {},
        "bias": {"bias": True},
        "dtype": {"dtype": value},
        "activation": {"activation": value},
        "format": {"format": value},
        "tokens": {"tokens": value, "top_k": 1},
        "input-scale": {"format": "mxfp4+input_scale"},
        "shared-experts": {"shared_experts": 1},
        "expert-map": {"total_experts": 2 * problem.experts},
        "gate": {"gate": gate_with(value) if kind == "gate" else SILU},
        "rows": {"gate": Gate(interleaved=True)},
    }
    return replace(problem, **known.get(kind, {"requires": frozenset({word})}))


def gate_with(word: str) -> Gate:
    """Return the activation for the last part of a word such as ``gate:relu2``."""
    other = {"clamped": Gate(limit=10.0), "none": Gate(gated=False)}
    return other[word] if word in other else replace(SILU, function=word)  # type: ignore[arg-type]  # a Function


def takes(backend: Backend, problem: Problem) -> bool:
    """Return whether the backend accepts a problem that the test then computes; a refusal must say why and what to do.

    A problem may be refused: this is a right answer, so it is no skip. The features of an accepted one count as
    exercised.
    """
    if not accepts(backend, problem):
        return False
    exercised.note(problem.op, problem.features)
    return True


def accepts(backend: Backend, problem: Problem) -> bool:
    """Return whether the backend accepts, without counting the features as exercised."""
    answer = verdict(backend, problem)
    if isinstance(answer, No):
        said = bool(answer.reason.strip()) and bool(answer.fix.strip())
        assert said, f"{backend.name} refuses {problem} without a reason or a fix: {answer}"
        return False
    return True
