"""Models in high precision that are quantised while diffusers loads them."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import components
import diffusers
import pytest
import torch

import mxfp4_diffusers
from mxfp4_core import quantize
from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.errors import PatternError, ShapeError
from mxfp4_core.jobs import quantize_checkpoint
from mxfp4_core.modules import Mxfp4Linear
from mxfp4_core.testing import check_parts, expected_parts, held_by
from mxfp4_diffusers import Mxfp4Config


def linears(model: torch.nn.Module) -> dict[str, Mxfp4Linear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Mxfp4Linear)}


# How many linears each model has in its blocks.
SITES = {"wan": 20, "z_image": 31, "flux": 17, "qwen_image": 28, "sd3": 21}


@pytest.mark.parametrize("name", components.NAMES)
def test_a_model_is_quantised_saved_and_loaded_by_its_class_and_by_auto_model(
    name: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    loaded = components.load(checkpoints[name], Mxfp4Config())
    plain = components.load(checkpoints[name])
    found, wanted = components.run(loaded), components.run(plain)
    assert len(linears(loaded)) == SITES[name]
    assert 0.01 < float((found - wanted).norm() / wanted.norm()) < 0.4
    loaded.save_pretrained(tmp_path)
    for kind in (type(loaded), diffusers.AutoModel):
        again = kind.from_pretrained(str(tmp_path), dtype=torch.bfloat16)
        assert components.same(loaded, again)
        assert torch.equal(components.run(again), found)


@pytest.mark.parametrize("name", components.NAMES)
def test_the_commands_decide_as_the_loader_does_and_give_the_same_bytes(
    name: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    result = quantize_checkpoint(checkpoints[name], tmp_path / "made", CoreConfig())
    assert result.kinds.startswith("kinds by diffusers ")
    kind = json.loads((checkpoints[name] / "config.json").read_text())["_class_name"]
    assert result.load == (
        f"import mxfp4_diffusers, diffusers; diffusers.{kind}.from_pretrained({str(tmp_path / 'made')!r})"
    )
    assert components.same(
        components.load(tmp_path / "made"), components.load(checkpoints[name], Mxfp4Config())
    )


@pytest.mark.parametrize("format", ["mxfp4-dual", "mxfp8"])
def test_other_formats_are_asked_for_by_name_and_come_back(
    format: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    loaded = components.load(checkpoints["z_image"], Mxfp4Config(format=format, tail="pad"))
    assert {module.format.name for module in linears(loaded).values()} == {format}
    loaded.save_pretrained(tmp_path)
    assert components.same(loaded, components.load(tmp_path))


@pytest.mark.parametrize("name", components.NAMES)
def test_the_bytes_are_those_of_the_core(name: str, checkpoints: dict[str, Path]) -> None:
    loaded = linears(components.load(checkpoints[name], Mxfp4Config(rule="floor")))
    checkpoint = open_checkpoint(checkpoints[name])
    weights = {f"{path}.weight": checkpoint.load(f"{path}.weight") for path in loaded}
    check_parts(held_by(loaded.items()), expected_parts(weights, fused={}, rule="floor"))


def test_a_weight_in_float32_is_rounded_once(tmp_path: Path) -> None:
    components.build("sd3", torch.float32).save_pretrained(tmp_path)
    checkpoint, loaded = open_checkpoint(tmp_path), components.load(tmp_path, Mxfp4Config())
    twice = 0
    for path, module in linears(loaded).items():
        weight = checkpoint.load(f"{path}.weight")
        assert torch.equal(module.canonical("weight").codes, quantize(weight).codes)
        twice += not torch.equal(quantize(weight).codes, quantize(weight.bfloat16()).codes)
    assert twice  # so that it would be noticed


def test_lists_of_a_class_are_respected(checkpoints: dict[str, Path]) -> None:
    loaded = components.load(checkpoints["wan"], Mxfp4Config())
    reasons = loaded.hf_quantizer.plan.reasons
    assert loaded.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert loaded.blocks[0].scale_shift_table.dtype == torch.float32
    assert reasons["proj_out"] == "the output head of the model, kept by default"
    forced = Mxfp4Config(overrides=[{"pattern": "time_embedder", "keep": False}])
    with pytest.raises(PatternError, match="asks for MXFP4, but all that it matches is kept"):
        components.load(checkpoints["wan"], forced)


def test_what_is_listed_as_sensitive_is_kept_unless_the_config_says_otherwise(
    checkpoints: dict[str, Path],
) -> None:
    forced = Mxfp4Config(overrides=[{"pattern": "norm1.linear", "keep": False}])
    assert "transformer_blocks.0.norm1.linear" in linears(components.load(checkpoints["flux"], forced))
    inputs = components.load(checkpoints["qwen_image"], Mxfp4Config()).hf_quantizer.plan.reasons
    assert inputs["img_in"] == "it takes the input of the model, before the blocks, kept by default"


def test_a_config_may_be_a_dictionary(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    loaded = components.load(checkpoints["sd3"], {"quant_method": "mxfp4-core", "rule": "floor"})
    loaded.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored["weights_profile"] == "floor/even"
    assert components.same(loaded, components.load(tmp_path))


def test_what_is_refused_is_kept_where_the_config_says_so_and_a_saved_copy_says_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = diffusers.ZImageTransformer2DModel(
        **{**components.Z_IMAGE, "dim": 64, "n_heads": 2, "n_kv_heads": 2}
    ).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    with pytest.raises(ShapeError, match=r"k = 170"):
        components.load(tmp_path / "bf16", Mxfp4Config())
    loaded = components.load(tmp_path / "bf16", Mxfp4Config(refused="keep"))
    assert len(linears(loaded)) == 27
    loaded.save_pretrained(tmp_path / "saved")
    assert components.same(loaded, components.load(tmp_path / "saved"))


def test_dequantize_puts_the_modules_back_with_the_values(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    loaded = components.load(checkpoints["sd3"], Mxfp4Config())
    values = {
        path: module.canonical("weight").dequantize(torch.bfloat16)
        for path, module in linears(loaded).items()
    }
    plain = loaded.dequantize()
    assert not linears(plain)
    assert all(torch.equal(plain.get_submodule(path).weight, value) for path, value in values.items())
    plain.save_pretrained(tmp_path)
    assert components.same(plain, components.load(tmp_path))


def test_a_report_and_a_summary_say_what_was_done(checkpoints: dict[str, Path]) -> None:
    loaded = components.load(checkpoints["wan"], Mxfp4Config())
    line = loaded.mxfp4_report.line()
    assert "quantised 20 layers (20 Linear)" in line and "profile even/even" in line
    assert "WanTransformer3DModel: 20 of 40 modules with weights are MXFP4" in mxfp4_diffusers.summary(loaded)


def test_files_that_are_read_by_threads_give_the_same_model(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = components.load(checkpoints["wan"], Mxfp4Config())
    monkeypatch.setattr(diffusers.models.modeling_utils, "HF_ENABLE_PARALLEL_LOADING", True)
    assert components.same(wanted, components.load(checkpoints["wan"], Mxfp4Config()))


def test_a_device_map_of_one_device_works(checkpoints: dict[str, Path]) -> None:
    loaded = components.load(checkpoints["z_image"], Mxfp4Config(), device_map={"": "cpu"})
    assert components.same(loaded, components.load(checkpoints["z_image"], Mxfp4Config()))


def test_without_a_dtype_the_model_is_in_float32_and_the_bytes_are_the_same(
    checkpoints: dict[str, Path],
) -> None:
    path = str(checkpoints["sd3"])
    loaded = diffusers.AutoModel.from_pretrained(path, quantization_config=Mxfp4Config())
    assert loaded.dtype == torch.float32
    wanted = linears(components.load(path, Mxfp4Config()))
    for name, module in linears(loaded).items():
        assert torch.equal(module.canonical("weight").codes, wanted[name].canonical("weight").codes)
    assert torch.isfinite(components.run(loaded)).all()


def test_a_copy_and_a_pickle_are_the_same_model(checkpoints: dict[str, Path]) -> None:
    loaded = components.load(checkpoints["sd3"], Mxfp4Config())
    for again in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert components.same(again, loaded)
        assert torch.equal(components.run(again), components.run(loaded))
