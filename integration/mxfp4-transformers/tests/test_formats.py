"""Folders of other formats than mxfp4: loaded, saved with every part, and loaded again as the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import CONFIGS, DEVICE, SIZES, logits, reload, tensors
from transformers import AutoModelForCausalLM, LlamaConfig

import mxfp4_transformers
from mxfp4_core import quantize
from mxfp4_core.errors import LoadError
from mxfp4_core.jobs import convert_checkpoint
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear
from mxfp4_transformers import Mxfp4Config

FORMATS = ["mxfp4-dual", "mxfp8", "mxfp4+input_scale"]


def folder(path: Path, format: str, config: Any) -> Path:
    """Write a checkpoint of our dialect whose linears have this format; their K is padded to whole blocks."""
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(path)
    stored: dict[str, torch.Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, weight in tensors(path).items():
        if weight.ndim != 2 or any(word in name for word in ("embed", "lm_head", "gate.weight")):
            stored[name] = weight
            continue
        made = quantize(weight, format=format, tail="pad")
        for part in made.format.parts:
            stored[f"{name}{part.suffix}"] = made.parts[part.name].contiguous()
        if weight.shape[-1] % made.format.block:
            shapes[name] = list(weight.shape)
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((path / "config.json").read_text())
    described["quantization_config"] = {
        "quant_method": "mxfp4-core",
        "weights_format": format,
        "shapes": shapes,
        "tail": "pad",
    }
    (path / "config.json").write_text(json.dumps(described))
    return path


def load(path: Path) -> Any:
    keywords: dict[str, Any] = {} if DEVICE == "cpu" else {"device_map": DEVICE}
    return mxfp4_transformers.from_pretrained(path, Mxfp4Config(backend="reference"), **keywords)


def same_state(model: Any, other: Any) -> None:
    state, wanted = model.state_dict(), other.state_dict()
    assert list(state) == list(wanted)
    for name in state:
        assert state[name].dtype == wanted[name].dtype, name
        assert torch.equal(state[name].view(torch.uint8), wanted[name].view(torch.uint8)), name


def check_again(model: Any, path: Path) -> None:
    model.save_pretrained(path)
    again = load(path)
    same_state(again, model)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("format", FORMATS)
def test_linears_of_every_format_survive_a_round_trip(tmp_path: Path, format: str) -> None:
    config = LlamaConfig(**SIZES, intermediate_size=96)
    model = load(folder(tmp_path / "first", format, config))
    found = {module.format.name for module in model.modules() if isinstance(module, Mxfp4Linear)}
    assert found == {format}
    check_again(model, tmp_path / "second")


@pytest.mark.parametrize("format", ["mxfp4-dual", "mxfp8"])
def test_experts_of_every_format_survive_a_round_trip(tmp_path: Path, format: str) -> None:
    model = load(folder(tmp_path / "first", format, CONFIGS["qwen3_moe"]()))
    found = {module.format.name for module in model.modules() if isinstance(module, Mxfp4Experts)}
    assert found == {format}
    check_again(model, tmp_path / "second")
    assert any(name.endswith("experts.0.up_proj.weight_scale") for name in tensors(tmp_path / "second"))


@pytest.mark.parametrize("format", FORMATS)
def test_transformers_alone_loads_every_format(tmp_path: Path, format: str) -> None:
    path = folder(tmp_path / "first", format, LlamaConfig(**SIZES, intermediate_size=96))
    same_state(reload(path), load(path))


MIXED = [
    {"pattern": "down_proj", "format": "mxfp8", "activation": "none"},
    {"pattern": "o_proj", "format": "mxfp4-dual"},
]


@pytest.mark.parametrize("dense", [True, False])
def test_formats_by_pattern_are_made_while_loading_saved_and_loaded_again(
    tmp_path: Path, dense: bool
) -> None:
    """Experts have one format in a layer, and are saved one by one."""
    torch.manual_seed(3)
    config = LlamaConfig(**SIZES, intermediate_size=96) if dense else CONFIGS["qwen3_moe"]()
    first = tmp_path / "first"
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(first)
    overrides = MIXED if dense else [{"pattern": "mlp.experts", "format": "mxfp8"}, MIXED[1]]
    keywords: dict[str, Any] = {} if DEVICE == "cpu" else {"device_map": DEVICE}
    asked = Mxfp4Config(backend="reference", tail="pad", overrides=overrides)
    model = mxfp4_transformers.from_pretrained(first, asked, **keywords)
    found = {name: each.format.name for name, each in model.named_modules() if hasattr(each, "format")}
    assert set(found.values()) == {"mxfp4", "mxfp4-dual", "mxfp8"}
    wide = "down_proj" if dense else "experts"
    assert {format for name, format in found.items() if name.endswith(wide)} == {"mxfp8"}
    check_again(model, tmp_path / "second")
    made = model.get_submodule("model.layers.0.self_attn.o_proj")
    want = quantize(tensors(first)["model.layers.0.self_attn.o_proj.weight"], format="mxfp4-dual", tail="pad")
    assert torch.equal(made.state_dict()["weight_level0"].cpu(), want.parts["level0"])
    convert_checkpoint(tmp_path / "second", tmp_path / "third", "mxfp4-core")
    again = load(tmp_path / "third")
    assert torch.equal(logits(again), logits(model))


def test_experts_with_a_multiplier_each_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "first", "mxfp4+input_scale", CONFIGS["qwen3_moe"]())
    with pytest.raises(LoadError, match=r"experts\.\w+_proj cannot be filled"):
        load(path)
