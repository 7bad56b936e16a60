"""Checkpoints that somebody quantised, and that cannot be loaded as asked: each is an error of ours."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from serialised import DIALECTS, Edit, from_pretrained, rounding, same
from tiny import logits, tensors
from torch import nn

import mxfp4_transformers
from mxfp4_core.backend import No, Problem, Verdict
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    DialectError,
    LoadError,
)
from mxfp4_transformers import Mxfp4Config


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("asked", "seen"),
    [({"rule": "floor"}, "floor/even"), ({"ignore": ["layers.0"]}, "ignore"), ({"tail": "pad"}, "tail")],
)
def test_a_config_that_contradicts_the_folder(
    made: Callable[[str, str], Path], dialect: str, asked: dict[str, Any], seen: str
) -> None:
    with pytest.raises(ConfigError, match=seen) as caught:
        from_pretrained(made("llama", dialect), Mxfp4Config(backend="reference", **asked))
    assert "drop" in caught.value.fix


def test_a_config_that_agrees_with_the_folder(made: Callable[[str, str], Path]) -> None:
    config = Mxfp4Config(backend="reference", profile="quark", activation="none")
    same(from_pretrained(made("llama", "quark"), config), from_pretrained(made("llama", "quark")))


def test_what_no_backend_takes_is_refused_or_widened(
    made: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = made("llama", "quark")
    plain = from_pretrained(path, dtype=torch.float32)
    supports = ReferenceBackend.supports

    def small(self: ReferenceBackend, problem: Problem) -> Verdict:
        return No("k is 96", "pad it") if problem.k == 96 else supports(self, problem)

    monkeypatch.setattr(ReferenceBackend, "supports", small)
    with pytest.raises(BackendError, match="k is 96") as caught:
        from_pretrained(path, dtype=torch.float32)
    assert "refused='keep'" in caught.value.fix
    with caplog.at_level(logging.WARNING, "mxfp4_core.modules"):
        model = from_pretrained(path, Mxfp4Config(backend="reference", refused="keep"), dtype=torch.float32)
    down = model.model.layers[1].mlp.down_proj
    assert type(down) is nn.Linear
    assert torch.equal(
        down.weight, plain.model.layers[1].mlp.down_proj.canonical("weight").dequantize(torch.float32)
    )
    assert "layers.1.mlp.down_proj is widened" in caplog.text
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)
    assert "k is 96" in mxfp4_transformers.summary(model)


def test_the_error_says_what_to_do_about_activations(
    made: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReferenceBackend, "supports", lambda self, problem: No("no", "no"))
    with pytest.raises(BackendError) as caught:
        from_pretrained(rounding(made("llama", "quark"), tmp_path))
    assert "activation='none', so that x is not rounded to mxfp4" in caught.value.fix


def test_a_backend_that_is_not_there(made: Callable[[str, str], Path]) -> None:
    with pytest.raises(BackendError, match="rocm") as caught:
        from_pretrained(made("llama", "quark"), Mxfp4Config(backend="rocm"))
    assert re.search(r"\n +reference +accepted +", caught.value.seen), "without what each backend said"


@pytest.mark.parametrize(
    ("model", "name", "error"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight_scale", DialectError),
        ("llama", "model.layers.1.mlp.up_proj.weight_packed", DialectError),
        ("qwen3_moe", "model.layers.1.mlp.experts.2.gate_proj.weight_scale", DialectError),
    ],
)
def test_half_a_weight(
    made: Callable[[str, str], Path], edited: Edit, model: str, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=name.rpartition(".")[0]):
        from_pretrained(edited(made(model, "compressed-tensors"), {name: None}))


@pytest.mark.parametrize(
    ("model", "gone"),
    [("llama", "layers.1.mlp.up_proj."), ("qwen3_moe", ".experts.5."), ("qwen3_moe", ".experts.3.up_proj.")],
)
def test_a_weight_is_missing(made: Callable[[str, str], Path], edited: Edit, model: str, gone: str) -> None:
    path = made(model, "compressed-tensors")
    with pytest.raises(LoadError, match=r"layers\.1\.mlp"):
        from_pretrained(edited(path, dict.fromkeys(name for name in tensors(path) if gone in name)))


def test_weights_of_another_model(made: Callable[[str, str], Path], tmp_path: Path) -> None:
    path = tmp_path / "other"
    shutil.copytree(made("llama", "quark"), path)
    config = json.loads((path / "config.json").read_text())
    for change, match in (
        ({"num_hidden_layers": 1}, "no place"),
        ({"intermediate_size": 128}, "cannot be filled"),
    ):
        (path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(LoadError, match=match):
            from_pretrained(path)


def test_a_bias_is_missing(gpt_oss: Path, checkpoints: dict[str, Path], edited: Edit) -> None:
    """transformers would leave it to whatever is in memory."""
    name = "model.layers.1.mlp.experts.gate_up_proj_bias"
    for path in (gpt_oss, checkpoints["gpt_oss"]):
        with pytest.raises(LoadError, match=rf"lacks biases(.|\n)*{name}"):
            from_pretrained(edited(path, {name: None}))


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"model_type": None}, "model_type"),
        ({"model_type": "nobody"}, "nobody"),
        ({"hidden_size": "x"}, "hidden"),
    ],
)
def test_a_config_json_that_describes_no_model(
    made: Callable[[str, str], Path], tmp_path: Path, change: dict[str, Any], seen: str
) -> None:
    shutil.copytree(made("llama", "quark"), tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    config = {key: value for key, value in {**config, **change}.items() if value is not None}
    (tmp_path / "other/config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=rf"describes no model\n  seen: (.|\n)*{seen}"):
        from_pretrained(tmp_path / "other")


@pytest.mark.parametrize("config", [CoreConfig(backend="reference"), {"backend": "reference"}], ids=str)
def test_any_config_of_ours_will_do(made: Callable[[str, str], Path], config: Any) -> None:
    model = from_pretrained(made("llama", "quark"), config)
    assert model.mxfp4_report.backend == "reference"


def test_a_config_of_somebody_else(made: Callable[[str, str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"cannot take this config\n  seen: a transformers\."):
        from_pretrained(made("llama", "quark"), transformers.Mxfp4Config())


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        from_pretrained(tmp_path / "nowhere")
