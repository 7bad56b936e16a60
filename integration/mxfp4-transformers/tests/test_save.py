"""Saving and loading again, here and with other people's readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import DEVICE, EXPERTS, SIZES, load, logits, reload, settings, tensors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    conversion_mapping,
)
from transformers.core_model_loading import Chunk, WeightConverter

import mxfp4_transformers
from mxfp4_core import quantize
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.errors import ConfigError, DialectError, OutputError
from mxfp4_core.jobs import quantize_checkpoint

Edit = Callable[[Path, dict[str, torch.Tensor | None]], Path]


def same_state(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


def test_round_trip(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint, settings())
    model.save_pretrained(tmp_path / "one")
    again = reload(tmp_path / "one")
    same_state(model, again)
    assert torch.equal(logits(model), logits(again))
    again.save_pretrained(tmp_path / "two")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (
        tmp_path / "two/model.safetensors"
    ).read_bytes()
    configs = [json.loads((tmp_path / run / "config.json").read_text()) for run in ("one", "two")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    assert "backend" not in configs[0]["quantization_config"]


def test_a_saved_model_is_dequantised(checkpoint: Path, tmp_path: Path) -> None:
    model, wanted = load(checkpoint, settings()), load(checkpoint, settings()).dequantize()
    model.save_pretrained(tmp_path / "saved")  # which leaves a word for the dtype in the config of the model
    same_state(model.dequantize(), wanted)


def test_names_on_disk_are_those_of_the_source(checkpoint: Path, tmp_path: Path) -> None:
    load(checkpoint, settings()).save_pretrained(tmp_path / "saved")
    source, saved = tensors(checkpoint), tensors(tmp_path / "saved")
    packed = {
        name for name, tensor in saved.items() if tensor.dtype == torch.uint8 and not name.endswith("_scale")
    }
    assert set(saved) == set(source) | {f"{name}_scale" for name in packed}
    for name in packed:
        *rows, k = source[name].shape if "gpt_oss" not in checkpoint.name else saved[name].shape
        if "gpt_oss" not in checkpoint.name:
            assert list(saved[name].shape) == [*rows, k // 2]
        assert saved[f"{name}_scale"].shape == (*saved[name].shape[:-1], saved[name].shape[-1] // 16)
    for name in set(source) - packed:
        assert torch.equal(saved[name], source[name])


def test_file_to_file_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    quantize_checkpoint(checkpoint, tmp_path / "file", CoreConfig(dialect="mxfp4-core"))
    model = load(checkpoint, settings())
    same_state(model, reload(tmp_path / "file"))
    model.save_pretrained(tmp_path / "online")
    file, online = tensors(tmp_path / "file"), tensors(tmp_path / "online")
    assert set(file) == set(online)
    assert all(torch.equal(file[name], online[name]) for name in file)
    configs = [json.loads((tmp_path / run / "config.json").read_text()) for run in ("file", "online")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]


def test_stacked_names_reload_too(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = load(checkpoints["qwen3_moe"], settings())
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    assert "model.layers.1.mlp.experts.gate_up_proj_scale" in tensors(tmp_path / "stacked")
    same_state(model, reload(tmp_path / "stacked"))


def test_many_files(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = load(checkpoints["mixtral"], settings())
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    same_state(model, reload(tmp_path / "shards"))


def test_layers_that_were_kept_come_back(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    config = settings(ignore=["layers.1.mlp.experts", "layers.0.self_attn"], rule="ceil", ties="zero")
    model = load(checkpoints["qwen3_moe"], config)
    model.save_pretrained(tmp_path / "mixed")
    again = reload(tmp_path / "mixed")
    same_state(model, again)
    assert "model.layers.1.mlp.experts" not in again.hf_quantizer.plan.weights
    assert again.model.layers[1].self_attn.q_proj.profile == "ceil/zero"


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "mixtral"])
def test_compressed_tensors_reads_what_we_save(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    pytest.importorskip("compressed_tensors")
    model = load(checkpoints[name], settings(), dtype=torch.bfloat16)
    path = mxfp4_transformers.save(model, tmp_path / "ct", dialect="compressed-tensors")
    described = json.loads((path / "config.json").read_text())["quantization_config"]
    assert described["quant_method"] == "compressed-tensors"
    theirs = AutoModelForCausalLM.from_pretrained(path)
    found, ours = logits(theirs), logits(model)  # their first call decompresses the linears
    assert (found - ours).norm() < 0.02 * ours.norm()
    expected = model.dequantize(torch.bfloat16).state_dict()
    parameters = {key: tensor for key, tensor in theirs.named_parameters() if not key.endswith("_scale")}
    assert set(parameters) == {key for key, _ in model.named_parameters()}
    for key, tensor in parameters.items():
        assert torch.equal(tensor, expected[key].cpu()), key


def test_a_dialect_without_words_for_stacks_says_so(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = load(checkpoints["gpt_oss"], settings())
    with pytest.raises(DialectError, match="experts"):
        mxfp4_transformers.save(model, tmp_path / "ct", dialect="compressed-tensors")
    assert list(tmp_path.iterdir()) == []


def test_save_writes_our_dialect_too(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = load(checkpoints["llama"], settings())
    ours = mxfp4_transformers.save(model, tmp_path / "deep/native", dialect="mxfp4-core")
    same_state(model, reload(ours))
    with pytest.raises(OutputError, match="force"):
        mxfp4_transformers.save(model, tmp_path / "deep/native")
    mxfp4_transformers.save(model, tmp_path / "deep/native", force=True)
    chosen = mxfp4_transformers.save(model, tmp_path / "deep/chosen")
    method = json.loads((chosen / "config.json").read_text())["quantization_config"]["quant_method"]
    assert method == "compressed-tensors"
    quark = mxfp4_transformers.save(model, tmp_path / "deep/quark", dialect="quark")
    assert json.loads((quark / "config.json").read_text())["quantization_config"]["quant_method"] == "quark"
    with pytest.raises(ConfigError, match="dialect"):
        mxfp4_transformers.save(model, tmp_path / "x", dialect="compresed-tensors")
    with pytest.raises(ConfigError, match="loaded with"):
        mxfp4_transformers.save(load(checkpoints["llama"]), tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]


def test_a_save_that_fails_leaves_nothing(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(checkpoints["llama"], settings())

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(OutputError, match="No space left"):
        mxfp4_transformers.save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(DEVICE == "cpu", reason="a device is needed for what a device does")
def test_a_device_gets_its_own(checkpoint: Path) -> None:
    model = load(checkpoint, settings(), device_map="auto")
    assert all(tensor.device.type != "cpu" for tensor in model.state_dict().values())
    assert any(use.device != "cpu" for use in model.mxfp4_report.memory)


def test_padded_experts(tmp_path: Path) -> None:
    sizes = {**SIZES, **EXPERTS, "hidden_size": 48, "num_experts": 3, "moe_intermediate_size": 40}
    torch.manual_seed(0)
    plain = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes)).to(torch.bfloat16)
    plain.save_pretrained(tmp_path / "odd")
    model = load(tmp_path / "odd", settings(tail="pad"))
    model.save_pretrained(tmp_path / "saved")
    same_state(model, reload(tmp_path / "saved"))
    described = json.loads((tmp_path / "saved/config.json").read_text())["quantization_config"]
    assert described["shapes"]["model.layers.1.mlp.experts.2.down_proj.weight"] == [48, 40]
    quantize_checkpoint(tmp_path / "odd", tmp_path / "file", CoreConfig(tail="pad", dialect="mxfp4-core"))
    assert json.loads((tmp_path / "file/config.json").read_text())["quantization_config"] == described
    same_state(model, reload(tmp_path / "file"))


@pytest.mark.parametrize("ending", ["", ".weight"])
def test_weights_that_are_fused_on_disk(
    checkpoints: dict[str, Path], tmp_path: Path, edited: Edit, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Both ways in which transformers writes such a conversion: for whole modules, and for their weights."""
    parts = ("gate_proj", "up_proj")
    source = tensors(checkpoints["llama"])
    changes: dict[str, torch.Tensor | None] = {}
    for layer in range(2):
        for kind in ("weight", "bias"):
            names = [f"model.layers.{layer}.mlp.{part}.{kind}" for part in parts]
            if kind == "weight" or not ending:
                changes[f"model.layers.{layer}.mlp.both.{kind}"] = torch.cat([source[name] for name in names])
                changes |= dict.fromkeys(names)
    path = edited(checkpoints["llama"], changes)
    split = WeightConverter(f"mlp.both{ending}", [f"mlp.{part}{ending}" for part in parts], [Chunk(0)])
    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # fills the cache
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, "llama", [split])

    model = load(path, settings())
    same_state(model, load(checkpoints["llama"], settings()))
    model.save_pretrained(tmp_path / "saved")
    saved = tensors(tmp_path / "saved")
    assert saved["model.layers.0.mlp.both.weight_scale"].shape == (192, 2)
    assert not any("gate_proj.weight" in name for name in saved)
    same_state(model, reload(tmp_path / "saved"))


def test_experts_that_are_transposed_on_disk(tmp_path: Path, edited: Edit) -> None:
    text = {**SIZES, **EXPERTS, "num_hidden_layers": 1, "moe_intermediate_size": 96, "num_experts": 4}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]}
    vision = {"depth": 1, "hidden_size": 64, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    torch.manual_seed(0)
    plain = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=vision))
    plain.to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    experts = {n: t.mT.contiguous() for n, t in tensors(tmp_path / "plain").items() if ".experts." in n}
    assert len(experts) == 2
    path = edited(tmp_path / "plain", dict(experts))

    kind = Qwen3VLMoeForConditionalGeneration
    model = kind.from_pretrained(path, quantization_config=settings(), device_map=DEVICE)
    state = model.state_dict()
    for name, turned in experts.items():
        expected = quantize(turned.mT)
        assert torch.equal(state[name].cpu(), expected.codes)
        assert torch.equal(state[f"{name}_scale"].cpu(), expected.scales)
    model.save_pretrained(tmp_path / "saved")
    same_state(model, reload(tmp_path / "saved", kind))
    quantize_checkpoint(path, tmp_path / "file", CoreConfig(dialect="mxfp4-core"))
    same_state(model, reload(tmp_path / "file", kind))
