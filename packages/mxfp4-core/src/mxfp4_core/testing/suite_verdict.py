"""Verdicts: pure, total, honest. None of this needs the device."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mxfp4_core.arithmetic import resolve
from mxfp4_core.backend import (
    GPT_OSS_SWIGLU,
    Backend,
    Device,
    Gate,
    No,
    Numerics,
    Problem,
    Yes,
    choices_of,
    kernels_of,
    verdict,
)
from mxfp4_core.errors import BackendError
from mxfp4_core.testing.fixtures import ORDINARY, Fixtures, accepts, asking_for, ordinary

DEVICES = (
    Device("cpu", "x86_64"),
    Device("cpu", "aarch64"),
    Device("cuda", "sm_75"),
    Device("cuda", "sm_90"),
    Device("cuda", "sm_100"),
    Device("hip", "gfx90a"),
    Device("hip", "gfx942"),
    Device("hip", "gfx950"),
    Device("npu", "unknown"),
    Device("mps", "unknown"),
    Device("", ""),
)


OF_MOE = ("gate:", "rows:", "tokens:", "expert-map", "shared-experts")
"""How the features begin that only experts have."""

READERS = tuple(
    (module, name)
    for module in (torch.cuda, torch.mps, torch.xpu, torch.accelerator)
    for name in (
        *("_lazy_init", "init", "is_available", "device_count", "current_device", "current_accelerator"),
        *(
            "get_device_properties",
            "get_device_capability",
            "get_device_name",
            "get_arch_list",
            "mem_get_info",
        ),
    )
)
"""What reads a device."""


class DeviceRead(Exception):
    """Raised instead of reading a device."""


def strange_problems(device: Device) -> list[Problem]:
    """Return problems that nobody expects, all of them legal questions."""
    linear = Problem(op="linear", n=1, k=1, device=device)
    moe = Problem(op="moe", n=1, k=1, experts=1, top_k=1, device=device)
    return [
        linear,
        replace(linear, m=0),
        replace(linear, n=2**40, k=2**40, m=2**40),
        replace(linear, dtype="float64"),
        replace(linear, activation="mxfp4"),
        replace(linear, activation="fp8", bias=True),
        replace(linear, op="quantize"),
        moe,
        replace(moe, experts=3, total_experts=4096, top_k=4096, bias=True),
        replace(moe, n=2**31, k=2**31, experts=2**16, total_experts=2**16, gate=GPT_OSS_SWIGLU),
        replace(moe, gate=Gate(alpha=-1.0, limit=0.0, up_offset=float("inf"))),
    ]


class VerdictSuite(Fixtures):
    """What a backend says about itself and about problems."""

    def test_members(self, backend: Backend) -> None:
        """It describes itself, and names only profiles that exist."""
        assert backend.name and backend.description and "\n" not in backend.description
        assert isinstance(backend.numerics, Numerics)
        for profile in filter(None, (*backend.numerics.profiles, backend.numerics.activation_profile)):
            assert resolve(profile).name == profile
        assert ("quantize" in backend.features) == bool(backend.numerics.profiles)
        assert ("activation:mxfp4" in backend.features) <= bool(backend.numerics.activation_profile)

    @pytest.mark.parametrize("op", ORDINARY)
    def test_an_ordinary_problem_is_taken(self, backend: Backend, made_for: Device, op: str) -> None:
        """An op that is offered is accepted at an ordinary size; one that is not is refused, by its name."""
        answer = verdict(backend, ordinary(backend, made_for, op))
        if op in backend.features:
            assert isinstance(answer, Yes), answer
            assert answer.temporary_bytes >= 0
        else:
            assert isinstance(answer, No) and op in answer.reason

    def test_each_feature_is_served(self, backend: Backend, made_for: Device) -> None:
        """A word on the list is accepted for an ordinary problem of an op: of that op if the word names one."""
        for feature in sorted(backend.features):
            first, _, rest = feature.partition(":")
            ops, word = ([first], rest) if rest and first in ORDINARY else (list(ORDINARY), feature)
            if feature in ORDINARY:
                ops, word = [feature], feature
            answers = []
            for op in ops:
                if op in backend.features and (op == "moe" or not word.startswith(OF_MOE)):
                    problem = asking_for(ordinary(backend, made_for, op), word)
                    answers.append(verdict(backend, problem))
            assert any(isinstance(answer, Yes) for answer in answers), (
                f"{backend.name} lists {feature!r} and takes no ordinary problem with it: {answers}"
            )

    def test_supports_asks_the_problem_and_no_device(
        self, backend: Backend, made_for: Device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It answers from the problem, also on a machine whose driver would answer otherwise or not at all."""
        problems = [ordinary(backend, made_for, op) for op in ORDINARY if op in backend.features]
        problems += strange_problems(made_for)
        before = [backend.supports(problem) for problem in problems]

        def read(*_: object, **__: object) -> None:
            raise DeviceRead("supports reads a device")

        for module, name in READERS:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, read)
        try:
            after = [backend.supports(problem) for problem in problems]
        except DeviceRead as error:
            raise AssertionError(
                f"{backend.name}: {error}; the problem says which device it is about"
            ) from error
        assert before == after

    def test_an_unknown_requirement_is_refused(self, backend: Backend, made_for: Device) -> None:
        """A word that the backend does not know is never ignored."""
        problem = replace(ordinary(backend, made_for), requires=frozenset({"a feature of the future"}))
        answer = verdict(backend, problem)
        assert isinstance(answer, No) and "a feature of the future" in answer.reason

    @pytest.mark.parametrize("device", DEVICES, ids=str)
    def test_supports_is_total_and_pure(self, backend: Backend, device: Device) -> None:
        """It answers anything, on any machine, twice the same."""
        for problem in strange_problems(device):
            first = backend.supports(problem)
            assert isinstance(first, Yes | No), problem
            assert backend.supports(problem) == first
            accepts(backend, problem)

    def test_kernels_are_listed_without_a_device(self, backend: Backend) -> None:
        """What is compiled here has a name each, and a place; a missing compiler is an error of ours."""
        try:
            found = kernels_of(backend)
        except BackendError:
            return
        if found is not None:
            names = [kernel.name for kernel in found.kernels]
            assert found.folder and names and len(set(names)) == len(names)

    @pytest.mark.parametrize("op", ORDINARY)
    def test_choices_leave_no_number_of_tokens_out(self, backend: Backend, made_for: Device, op: str) -> None:
        """A table of choices begins at one token and has no gap."""
        problem = ordinary(backend, made_for, op)
        rows = choices_of(backend, problem) if accepts(backend, problem) else ()
        if rows:
            assert rows == choices_of(backend, problem)
            assert [row.first for row in rows] == [1, *(row.last + 1 for row in rows[:-1])]
            assert all(row.kernel and row.first <= row.last for row in rows)

    def test_it_can_be_copied(self, backend: Backend) -> None:
        """Modules hold the backend, and modules are copied and sent to other processes."""
        for twin in (copy.deepcopy(backend), pickle.loads(pickle.dumps(backend))):
            assert (twin.name, twin.features, twin.numerics) == (
                backend.name,
                backend.features,
                backend.numerics,
            )

    def test_importing_it_starts_no_device(self, backend: Backend) -> None:
        """A context costs memory and forbids to fork, so only a call may create one."""
        code = f"import {type(backend).__module__}, torch; raise SystemExit(torch.cuda.is_initialized())"
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }  # also a module beside a test
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env
        )
        assert done.returncode == 0, done.stderr or "importing the package initialises CUDA"
