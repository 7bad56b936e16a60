"""The suite is only worth something if it fails: each wrong backend has one defect, and a named test catches it.

Most defects were seen in a real kernel package, or passed an earlier suite.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from wrong_backends import experts, gates, layouts, linears, others, quantizers, verdicts
from wrong_backends.base import WRONG, Wrong

from mxfp4_core.backend import Backend
from mxfp4_core.backend.device import Device, cpu
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.testing.conformance import BackendConformance

KINDS = (experts, gates, layouts, linears, others, quantizers, verdicts)


def call(
    backend: Backend,
    wrong: Wrong,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    here: Device | None = None,
) -> None:
    """Call the test that catches a wrong backend on the CPU."""
    method: Callable[..., None] = getattr(BackendConformance(), wrong.test)
    given: dict[str, Any] = {
        "backend": backend,
        "here": here or cpu(),
        "made_for": here or cpu(),
        "device": torch.device("cpu"),
        "tmp_path": tmp_path,
        "monkeypatch": monkeypatch,
        **wrong.arguments,
    }
    wanted = inspect.signature(method).parameters
    with monkeypatch.context() as patch:
        method(**{name: value for name, value in {**given, "monkeypatch": patch}.items() if name in wanted})


def name(wrong: Wrong) -> str:
    return f"{wrong.backend.__module__.rpartition('.')[2]}-{wrong.backend.__name__}"


@pytest.mark.parametrize("wrong", WRONG, ids=name)
def test_the_suite_catches_the_defect(wrong: Wrong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = vars(wrong.backend).get("sound", wrong.backend.__mro__[1])
    call(sound(), wrong, tmp_path, monkeypatch)
    with pytest.raises(wrong.raises):
        call(wrong.backend(), wrong, tmp_path, monkeypatch)


def test_every_defect_is_in_the_table() -> None:
    registered = {wrong.backend for wrong in WRONG}
    assert len(registered) == len(WRONG) >= 150
    for kind in KINDS:
        classes = [
            one for one in vars(kind).values() if inspect.isclass(one) and one.__module__ == kind.__name__
        ]
        backends = {one for one in classes if issubclass(one, ReferenceBackend) or hasattr(one, "supports")}
        assert backends - registered <= {layouts.ScalesOfTheFirstExpert, gates.Choosing}


def test_every_suite_counts() -> None:
    """Two suites with a test of the same name would hide one of them."""
    own = [name for suite in BackendConformance.__mro__ for name in vars(suite) if name.startswith("test_")]
    assert len(own) == len(set(own)) > 40
