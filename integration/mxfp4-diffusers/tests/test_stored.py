"""Checkpoints that are quantised already, in every dialect that diffusers does not serve itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import components
import pytest
import torch
from diffusers.quantizers import auto
from safetensors.torch import load_file

import mxfp4_diffusers
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.errors import BackendError, ConfigError, DialectError, LoadError
from mxfp4_core.jobs import quantize_checkpoint
from mxfp4_diffusers import Mxfp4Config

Made = Callable[[str, str], Path]
Edit = Callable[[Path, dict[str, torch.Tensor | None]], Path]


@pytest.fixture(scope="module")
def made(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a quantised copy of a model in a dialect; that of Wan in several files."""
    root = tmp_path_factory.mktemp("stored")

    def make(name: str, dialect: str) -> Path:
        path = root / f"{name}-{dialect}"
        if not path.exists():
            config = CoreConfig(dialect=dialect, profile="quark")
            quantize_checkpoint(checkpoints[name], path, config, max_shard_bytes=60_000)
        return path

    return make


@pytest.mark.parametrize("dialect", ["mxfp4-core", "compressed-tensors", "quark"])
def test_a_folder_of_any_dialect_loads_with_its_own_bytes(
    dialect: str, made: Made, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = made("wan", dialect)
    assert len(list(folder.glob("*.safetensors"))) > 1
    wanted = components.load(checkpoints["wan"], Mxfp4Config(profile="quark"))
    loaded = components.load(folder)
    assert components.same(loaded, wanted)
    assert torch.equal(components.run(loaded), components.run(wanted))
    loaded.save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"]
        == "mxfp4-core"
    )
    assert components.same(components.load(tmp_path), wanted)


def test_the_backend_of_a_quantised_folder_is_chosen_for_a_block_of_code(made: Made) -> None:
    folder = made("sd3", "mxfp4-core")
    with mxfp4_diffusers.machine(backend="reference"):
        loaded = components.load(folder)
    assert loaded.hf_quantizer.quantization_config.core.backend == "reference"
    assert components.load(folder).hf_quantizer.quantization_config.core.backend is None
    with pytest.raises(BackendError, match="no-such"), mxfp4_diffusers.machine(backend="no-such"):
        components.load(folder)
    with pytest.raises(ConfigError, match="refused"), mxfp4_diffusers.machine(refused="maybe"):
        pass


def test_a_backend_that_refuses_is_an_error_with_its_trace_or_widens_aloud(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made("sd3", "mxfp4-core")
    with (
        mxfp4_diffusers.machine(backend="cuda-marlin"),
        pytest.raises(BackendError, match="cuda-marlin") as found,
    ):
        components.load(folder)
    assert "reference" in str(found.value)
    with mxfp4_diffusers.machine(backend="cuda-marlin", refused="keep"):
        loaded = components.load(folder)
    assert "is widened to high precision" in caplog.text
    wanted = components.load(folder).dequantize()
    assert components.same(loaded, wanted)


def test_without_our_import_diffusers_says_so_in_its_own_words(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    # docs/diffusers.md explains it.
    folder = made("sd3", "mxfp4-core")
    for known in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(known, mxfp4_diffusers.METHOD)
    with pytest.raises(ValueError, match="Unknown quantization type, got mxfp4-core"):
        components.load(folder)


def test_a_missing_scale_is_an_error_before_anything_is_read(
    made: Made,
    edited: Edit,
    checkpoints: dict[str, Path],
    tmp_path: Path,
) -> None:
    quantize_checkpoint(checkpoints["sd3"], tmp_path / "whole", CoreConfig())
    name = "transformer_blocks.0.attn.to_q.weight_scale"
    with pytest.raises(DialectError, match=name):
        components.load(edited(tmp_path / "whole", {name: None}))


def test_a_weight_that_has_no_place_is_an_error(
    edited: Edit,
    checkpoints: dict[str, Path],
    tmp_path: Path,
) -> None:
    quantize_checkpoint(checkpoints["sd3"], tmp_path / "whole", CoreConfig())
    (file,) = (tmp_path / "whole").glob("*.safetensors")
    stored = load_file(file)
    more = {
        f"transformer_blocks.9.attn.to_q.{last}": stored[f"transformer_blocks.0.attn.to_q.{last}"]
        for last in ("weight", "weight_scale")
    }
    with pytest.raises(LoadError, match=r"have no place in SD3Transformer2DModel"):
        components.load(edited(tmp_path / "whole", more))


def test_a_dialect_that_says_it_is_quantised_and_is_not_is_an_error(
    edited: Edit, checkpoints: dict[str, Path]
) -> None:
    folder = edited(checkpoints["sd3"], {})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4-core", "weights_profile": "even/even"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((DialectError, LoadError)):
        components.load(folder)


@pytest.mark.parametrize(("common", "own"), [("none", "mxfp4"), ("mxfp4", "none")])
def test_an_override_says_how_the_input_of_its_layers_is_quantised(
    checkpoints: dict[str, Path], tmp_path: Path, common: str, own: str
) -> None:
    overrides = [{"pattern": "ff", "activation": own}]
    settings: dict[str, Any] = {"activation": common, "backend": "reference", "overrides": overrides}
    wanted = components.load(checkpoints["sd3"], Mxfp4Config(**settings))
    core = CoreConfig.from_dict({**settings, "dialect": "mxfp4-core"})
    quantize_checkpoint(checkpoints["sd3"], tmp_path / "made", core)
    wanted.save_pretrained(tmp_path / "saved")
    modes = {
        name: each.problem.activation for name, each in wanted.named_modules() if hasattr(each, "problem")
    }
    assert set(modes.values()) == {common, own}
    for folder in ("made", "saved"):
        with mxfp4_diffusers.machine(backend="reference"):
            loaded = components.load(tmp_path / folder)
        assert modes == {name: loaded.get_submodule(name).problem.activation for name in modes}
        assert torch.equal(components.run(loaded), components.run(wanted))
