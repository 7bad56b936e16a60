"""The plan asks the backend that would run the model."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from plan_models import H200, write

from mxfp4_core import _plugins
from mxfp4_core.arithmetic.shapes import mx_bytes
from mxfp4_core.backend import registry
from mxfp4_core.backend.select import KNOWN
from mxfp4_core.config.checks import KNOWN_BACKENDS
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import BackendError
from mxfp4_core.jobs.plan import plan_checkpoint


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Any:
    from mxfp4_core.testing.emulated import EmulatedBackend

    backend = EmulatedBackend()
    point = EntryPoint(backend.name, "anywhere:backend", registry.GROUP)
    object.__setattr__(point, "load", lambda: backend)
    real = _plugins.entry_points
    monkeypatch.setattr(
        _plugins, "entry_points", lambda group: [point] if group == registry.GROUP else real(group=group)
    )
    registry.refresh()
    yield backend
    registry.refresh()


class TestBackend:
    def test_fused_modules_are_asked_as_one(self, model: Path) -> None:
        found = plan_checkpoint(model, backend="reference", device=H200)
        asked = {fit.modules[0]: fit.question for fit in found.fits}
        assert "n=256 k=128" in asked["model.layers.0.self_attn.qkv_proj"]
        assert "n=192 k=128 experts=4/4 top_k=2" in asked["model.layers.0.mlp.experts"]
        assert all(fit.backend == "reference" for fit in found.fits)

    def test_a_bias_is_part_of_the_question(self, tmp_path: Path) -> None:
        shapes = {f"model.layers.0.self_attn.{part}_proj.weight": (64, 64) for part in "qkvo"}
        biases = {f"model.layers.0.self_attn.{part}_proj.bias": (64,) for part in "qkv"}
        path = write(tmp_path / "biased", {**shapes, **biases}, {})
        asked = {
            fit.modules[0]: fit.question
            for fit in plan_checkpoint(path, backend="reference", device=H200).fits
        }
        assert " bias " in asked["model.layers.0.self_attn.qkv_proj"]
        assert " bias " not in asked["model.layers.0.self_attn.o_proj"]

    def test_one_rank_of_experts_asks_with_a_map(self, model: Path) -> None:
        found = plan_checkpoint(model, backend="reference", tp=2, ep=2, device=H200)
        assert any("experts=2/4" in fit.question and "expert-map" in fit.question for fit in found.fits)

    def test_padding_is_counted(self, model: Path, emulated: Any) -> None:
        found = plan_checkpoint(model, backend="emulated")
        by_module = {fit.modules[0]: fit for fit in found.fits}
        fit = by_module["model.layers.0.self_attn.o_proj"]
        assert fit.n % 48 == 0 and fit.k % 96 == 0 and fit.n >= 128 and fit.k >= 128
        assert fit.padding_bytes == 2 * (mx_bytes((fit.n, fit.k)) - mx_bytes((128, 128)))
        assert found.rank_bytes == found.bytes_after + sum(fit.padding_bytes for fit in found.fits)

    def test_a_refusal_is_a_finding_with_its_fix(
        self, model: Path, emulated: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mxfp4_core.backend.answers import No

        monkeypatch.setattr(
            type(emulated), "supports", lambda self, finding: No(f"k = {finding.k}", "use --tp 1")
        )
        findings = plan_checkpoint(model, backend="emulated").findings
        assert any("k = 128" in finding and "use --tp 1" in finding for finding in findings)

    def test_the_backend_of_the_config_is_asked(self, model: Path) -> None:
        assert plan_checkpoint(model, Mxfp4Config(backend="reference"), device=H200).fits

    def test_modules_that_cannot_be_cut_are_not_asked(self, model: Path) -> None:
        found = plan_checkpoint(model, tp=4, backend="reference", device=H200)
        assert not any("experts" in module for fit in found.fits for module in fit.modules)

    def test_an_unknown_backend_is_an_error(self, model: Path) -> None:
        with pytest.raises(BackendError, match="did you mean 'reference'"):
            plan_checkpoint(model, backend="refrence")

    def test_the_config_knows_the_backends_of_this_project(self) -> None:
        assert {*KNOWN, "reference"} == set(KNOWN_BACKENDS)
