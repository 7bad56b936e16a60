"""What tests of checkpoints that somebody quantised share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEVICE

import mxfp4_transformers
from mxfp4_core.backend import No, Problem, Verdict
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_transformers import Mxfp4Config

Edit = Callable[[Path, dict[str, torch.Tensor | None]], Path]


DIALECTS = ("mxfp4-core", "compressed-tensors", "quark")


def from_pretrained(path: Path, config: Any = None, **keywords: Any) -> Any:
    """Load onto the reference backend of the device of this run."""
    if DEVICE != "cpu":
        keywords.setdefault("device_map", DEVICE)
    return mxfp4_transformers.from_pretrained(path, config or Mxfp4Config(backend="reference"), **keywords)


def rounding(path: Path, root: Path) -> Path:
    """Return a copy of a Quark checkpoint whose activations are MXFP4, too."""
    shutil.copytree(path, root / "w4a4")
    config = json.loads((path / "config.json").read_text())
    scheme = config["quantization_config"]["global_quant_config"]
    scheme["input_tensors"] = {**scheme["weight"], "is_dynamic": True}
    (root / "w4a4/config.json").write_text(json.dumps(config))
    return root / "w4a4"


def same(model: Any, other: Any) -> None:
    """Check that two models hold the same bytes under the same names."""
    state, wanted = model.state_dict(), other.state_dict()
    assert list(state) == list(wanted)
    assert all(torch.equal(state[name].cpu(), wanted[name].cpu()) for name in wanted)


def no_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take from the reference what a backend for weights alone does not offer."""
    supports = ReferenceBackend.supports

    def plain(self: ReferenceBackend, problem: Problem) -> Verdict:
        return supports(self, problem) if problem.activation == "none" else No("weights only", "ask for none")

    monkeypatch.setattr(ReferenceBackend, "supports", plain)
