"""How x is quantised where a folder says it by weight: by overrides, or by groups of formats."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from serialised import from_pretrained
from tiny import SIZES, logits, reload
from transformers import AutoModelForCausalLM, LlamaConfig

from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.jobs import quantize_checkpoint
from mxfp4_transformers import Mxfp4Config


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("activations") / "dense"
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, intermediate_size=96))
    model.to(torch.bfloat16).save_pretrained(path)
    return path


def modes_of(model: Any) -> dict[str, str]:
    return {name: each.problem.activation for name, each in model.named_modules() if hasattr(each, "problem")}


@pytest.mark.parametrize(("common", "own"), [("none", "mxfp4"), ("fp8", "none"), (None, "fp8")])
def test_an_override_says_how_the_input_of_its_layers_is_quantised(
    dense: Path, tmp_path: Path, common: str | None, own: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {} if common is None else {"activation": common}
    settings |= {"tail": "pad", "overrides": [{"pattern": "down_proj", "activation": own}]}
    wanted = from_pretrained(dense, Mxfp4Config(backend="reference", **settings))
    modes = modes_of(wanted)
    assert {mode for name, mode in modes.items() if name.endswith("down_proj")} == {own}
    assert {mode for name, mode in modes.items() if not name.endswith("down_proj")} == {common or "none"}
    core = CoreConfig.from_dict({**settings, "dialect": "mxfp4-core"})
    quantize_checkpoint(dense, tmp_path / "made", core)
    wanted.save_pretrained(tmp_path / "saved")
    for folder in ("made", "saved"):
        loaded = from_pretrained(tmp_path / folder)
        reloaded = reload(tmp_path / folder)
        assert modes_of(loaded) == modes_of(reloaded) == modes
        assert torch.equal(logits(loaded), logits(wanted))
    with caplog.at_level(logging.WARNING, "mxfp4_transformers"):
        plain = from_pretrained(tmp_path / "made", Mxfp4Config(backend="reference", activation="none"))
    assert set(modes_of(plain).values()) == {"none"}
    assert "the checkpoint was made for " in caplog.text


def test_groups_of_another_dialect_say_it_of_their_weights(dense: Path, tmp_path: Path) -> None:
    overrides = [{"pattern": "down_proj", "format": "mxfp8", "activation": "mxfp8"}]
    settings = {"activation": "none", "overrides": overrides, "dialect": "compressed-tensors"}
    quantize_checkpoint(dense, tmp_path / "made", CoreConfig.from_dict(settings))
    said = json.loads((tmp_path / "made/config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "compressed-tensors"
    modes = modes_of(from_pretrained(tmp_path / "made"))
    assert {mode for name, mode in modes.items() if name.endswith("down_proj")} == {"mxfp8"}
    assert {mode for name, mode in modes.items() if not name.endswith("down_proj")} == {"none"}
