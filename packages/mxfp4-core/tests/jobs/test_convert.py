from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mxfp4_core import Mxfp4Config, dialects, quantize
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.errors import ConfigError, DialectError, OutputError
from mxfp4_core.jobs.convert import convert_checkpoint, settings_of
from mxfp4_core.jobs.quantize import quantize_checkpoint
from mxfp4_core.naming.resolver import Resolver

Save = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    folder = save(dense, config={"model_type": "llama"})
    (folder / "tokenizer.json").write_text("{}")
    return folder


LINEAR = ("mxfp4-core", "compressed-tensors", "quark")  # dialects for linears of any model


@pytest.mark.parametrize("start", LINEAR)
@pytest.mark.parametrize("via", LINEAR)
@pytest.mark.parametrize("with_manifest", [True, False])
def test_there_and_back_gives_the_same_bytes(
    source: Path, contents: Contents, start: str, via: str, with_manifest: bool
) -> None:
    settings = {"dialect": start, "activation": "mxfp4", "profile": "quark"}
    one, two, three = (source.parent / name for name in ("one", "two", "three"))
    quantize_checkpoint(source, one, Mxfp4Config.from_dict(settings))
    if not with_manifest:
        (one / "mxfp4_manifest.json").unlink()
    result = convert_checkpoint(one, two, via, max_shard_bytes=4000)
    assert result.quantized == 7
    convert_checkpoint(two, three, start)
    before, after = contents(one), contents(three)
    for files in (before, after):
        files.pop("mxfp4_manifest.json", None)
        # A foreign dialect has no room for all of our settings, so a round trip may leave out those of no effect.
        files.pop("config.json")
    assert before == after
    found = dialects.read(open_checkpoint(three))
    assert found is not None
    assert (found[0].name, found[1].activation) == (start, "mxfp4")
    if start != "mxfp4-core":
        first, last = (json.loads((path / "config.json").read_text()) for path in (one, three))
        assert first == last


def foreign_file(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    """A compressed-tensors checkpoint of somebody else, with a quantised head and a linear that is not."""
    stored = {}
    for name, weight in dense.items():
        if name == "lm_head.weight" or ("proj.weight" in name and "o_proj" not in name):
            packed = quantize(weight, profile="compressed-tensors")
            stored[f"{name}_packed"], stored[f"{name}_scale"] = packed.codes, packed.scales
        else:
            stored[name] = weight
    group = {"weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}}
    described = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "ignore": ["re:.*o_proj"],
    }
    return save(stored, config={"quantization_config": described}, name="foreign")


def test_a_foreign_file_gets_a_config_that_decides_as_it_does(
    save: Save, dense: dict[str, torch.Tensor]
) -> None:
    foreign = foreign_file(save, dense)
    target = foreign.parent / "native"
    convert_checkpoint(foreign, target, "mxfp4-core")
    checkpoint = open_checkpoint(target)
    found = dialects.read(checkpoint)
    assert found is not None
    assert found[1].profile == ""
    config, profile = settings_of(checkpoint, *found)
    assert profile == ""
    resolver = Resolver.for_model(config, {}, fused={})
    decided = {
        d.name for d in resolver.decide_all([(n, tuple(t.shape)) for n, t in dense.items()]) if d.quantize
    }
    assert decided == set(found[1].entries)
    assert "lm_head.weight" in decided
    assert "model.layers.0.self_attn.o_proj.weight" not in decided
    loaded = load_file(target / "model.safetensors")
    expected = quantize(dense["lm_head.weight"], profile="compressed-tensors")
    assert torch.equal(loaded["lm_head.weight"], expected.codes)
    assert torch.equal(loaded["lm_head.weight_scale"], expected.scales)


def test_descriptions_of_the_old_dialect_stay_behind(source: Path) -> None:
    one, two = source.parent / "one", source.parent / "two"
    quantize_checkpoint(source, one, Mxfp4Config.from_dict({"dialect": "compressed-tensors"}))
    (one / "quantization_config.json").write_text("{}")
    convert_checkpoint(one, two, "quark")
    assert not (two / "quantization_config.json").exists()
    assert (two / "tokenizer.json").exists()


def test_a_quantised_head_is_not_ignored(save: Save, dense: dict[str, torch.Tensor]) -> None:
    foreign = foreign_file(save, dense)
    convert_checkpoint(foreign, foreign.parent / "quark", "quark")
    described = open_checkpoint(foreign.parent / "quark").config["quantization_config"]
    assert described["exclude"] == ["model.layers.0.self_attn.o_proj"]


def test_a_manifest_of_other_files_is_not_believed(source: Path, dense: dict[str, torch.Tensor]) -> None:
    target = source.parent / "ct"
    quantize_checkpoint(
        source, target, Mxfp4Config.from_dict({"dialect": "compressed-tensors", "rule": "floor"})
    )
    checkpoint = open_checkpoint(target)
    found = dialects.read(checkpoint)
    assert found is not None
    assert settings_of(checkpoint, *found)[1] == "floor/even"
    tensors = load_file(target / "model.safetensors")
    save_file({**tensors, "extra": torch.ones(1)}, target / "model.safetensors")
    assert settings_of(open_checkpoint(target), *found)[1] == ""


def test_stacked_experts_and_padding_stay_in_the_native_dialect(save: Save) -> None:
    source = save(
        {"model.layers.0.mlp.experts.down_proj": torch.ones(2, 64, 8), "a.proj.weight": torch.ones(3, 40)},
        config={"model_type": "gpt_oss"},
    )
    native, again = source.parent / "native", source.parent / "again"
    quantize_checkpoint(source, native, Mxfp4Config.from_dict({"tail": "pad"}))
    convert_checkpoint(native, again, "mxfp4-core")
    assert (native / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert (native / "config.json").read_bytes() == (again / "config.json").read_bytes()
    with pytest.raises(DialectError, match="cannot be written in the dialect quark"):
        convert_checkpoint(native, source.parent / "quark", "quark")
    assert not (source.parent / "quark").exists()


def test_what_cannot_be_converted(save: Save, source: Path) -> None:
    target = source.parent / "target"
    with pytest.raises(DialectError, match="no quantised weights"):
        convert_checkpoint(source, target, "quark")
    with pytest.raises(ConfigError, match="unknown dialect"):
        convert_checkpoint(source, target, "onnx")
    with pytest.raises(OutputError, match="apart"):
        convert_checkpoint(source, source, "quark")
    fp8: dict[str, Any] = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False}
    weight = {"dtype": "fp4", "group_size": 32, "scale_format": "e8m0"}
    described = {"quant_method": "quark", "global_quant_config": {"weight": weight, "input_tensors": fp8}}
    packed = quantize(torch.ones(4, 64))
    static = save(
        {"a.weight": packed.codes, "a.weight_scale": packed.scales, "a.input_scale": torch.ones(1)},
        config={"quantization_config": described},
        name="static",
    )
    for dialect in ("mxfp4-core", "compressed-tensors"):  # whose FP8 inputs get their scales on the way
        with pytest.raises(DialectError, match=r"static scales, for example .a\.input_scale."):
            convert_checkpoint(static, target, dialect)
        assert not target.exists()
    convert_checkpoint(static, target, "compressed-tensors", activation="fp8")
    assert "a.input_scale" not in open_checkpoint(target).tensors
