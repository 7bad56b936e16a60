"""What is saved under other names than the model has: scales follow codes, and what cannot be read is not written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import SIZES, load, logits, reload, settings, tensors
from torch import nn
from transformers import AutoModelForCausalLM, GraniteMoeConfig, conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

import mxfp4_transformers
from mxfp4_core import quantize
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import quantize_checkpoint, verify_checkpoint
from mxfp4_transformers import converters

Edit = Callable[[Path, dict[str, torch.Tensor | None]], Path]


def same_state(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    assert all(torch.equal(left[name].cpu(), right[name].cpu()) for name in left)


def convert(monkeypatch: pytest.MonkeyPatch, *conversions: Any) -> None:
    """Let transformers read checkpoints of llama so."""
    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # fills the cache
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, "llama", list(conversions))


def fused(path: Path, target: str, sources: list[str]) -> dict[str, torch.Tensor | None]:
    """Return what makes one tensor of several, in each layer of a checkpoint."""
    stored = tensors(path)
    changes: dict[str, torch.Tensor | None] = {}
    for layer in range(2):
        for kind in ("weight", "bias"):
            names = [f"model.layers.{layer}.{source}.{kind}" for source in sources]
            changes[f"model.layers.{layer}.{target}.{kind}"] = torch.cat([stored[name] for name in names])
            changes |= dict.fromkeys(names)
    return changes


@pytest.fixture(scope="module")
def granite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose stacks of experts are linears by name in the file."""
    path = tmp_path_factory.mktemp("granite")
    sizes = {key: size for key, size in SIZES.items() if key != "head_dim"}
    config = GraniteMoeConfig(**sizes, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(path)
    return path


def test_scales_have_the_names_of_their_codes(granite: Path, tmp_path: Path) -> None:
    model = load(granite, settings())
    model.save_pretrained(tmp_path / "saved")
    name = "model.layers.0.block_sparse_moe.input_linear.weight"
    stored = tensors(tmp_path / "saved")
    assert stored[name].shape == (4, 192, 32)
    assert stored[f"{name}_scale"].shape == (4, 192, 2)
    assert {each.removesuffix("_scale") for each in stored} == set(tensors(granite))
    same_state(model, reload(tmp_path / "saved"))
    same_state(model, mxfp4_transformers.from_pretrained(tmp_path / "saved", settings()))
    verify_checkpoint(tmp_path / "saved", source=granite)
    quantize_checkpoint(granite, tmp_path / "file", CoreConfig(dialect="mxfp4-core"))
    same_state(model, reload(tmp_path / "file"))
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    same_state(model, reload(tmp_path / "stacked"))


@pytest.mark.parametrize("source", [r"wq\.weight", r"attention\.wq\.weight", "wq"])
def test_any_way_to_rename(
    checkpoints: dict[str, Path], tmp_path: Path, edited: Edit, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    plain = source.replace("\\", "")
    target = "self_attn.q_proj" if "attention" in plain else "q_proj"
    target += ".weight" if plain.endswith("weight") else ""
    changes: dict[str, torch.Tensor | None] = {}
    for name, tensor in tensors(checkpoints["llama"]).items():
        if target in name:
            changes |= {name: None, name.replace(target, plain): tensor}
    path = edited(checkpoints["llama"], changes)
    convert(monkeypatch, WeightRenaming(source, target))
    model = load(path, settings())
    model.save_pretrained(tmp_path / "saved")
    assert {name.removesuffix("_scale") for name in tensors(tmp_path / "saved")} == set(tensors(path))
    same_state(model, reload(tmp_path / "saved"))
    monkeypatch.undo()
    same_state(model, load(checkpoints["llama"], settings()))


@pytest.mark.skipif(
    converters.Split is None, reason="this release of transformers cuts into equal parts only"
)
def test_weights_that_are_cut_unequally(
    checkpoints: dict[str, Path], tmp_path: Path, edited: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [f"self_attn.{part}_proj" for part in "qkv"]  # 128, 64 and 64 rows
    path = edited(checkpoints["llama"], fused(checkpoints["llama"], "self_attn.all", parts))
    assert converters.Split is not None
    convert(monkeypatch, WeightConverter("self_attn.all", parts, [converters.Split(0)]))  # type: ignore[call-arg]
    model = load(path, settings())
    same_state(model, load(checkpoints["llama"], settings()))
    model.save_pretrained(tmp_path / "saved")
    assert tensors(tmp_path / "saved")["model.layers.0.self_attn.all.weight_scale"].shape == (256, 2)
    again = reload(tmp_path / "saved")
    same_state(model, again)
    assert torch.equal(logits(model), logits(again))
    quantize_checkpoint(path, tmp_path / "file", CoreConfig(dialect="mxfp4-core"))
    same_state(model, reload(tmp_path / "file"))


@pytest.mark.parametrize("cut", [Chunk, converters.Split])
def test_an_input_multiplier_of_a_fused_weight_is_that_of_each_part(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: Any
) -> None:
    if cut is None:
        pytest.skip("this release of transformers cuts into equal parts only")
    parts = ["mlp.gate_proj", "mlp.up_proj"]
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in {
        **tensors(checkpoints["llama"]),
        **fused(checkpoints["llama"], "mlp.both", parts),
    }.items():
        if tensor is not None and "both.weight" in name:
            made = quantize(tensor, format="mxfp4+input_scale")
            made.parts["input_scale"].copy_(torch.rand(64) + 0.5)
            stored |= {f"{name}{part.suffix}": made.parts[part.name] for part in made.format.parts}
        elif tensor is not None:
            stored[name] = tensor
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoints["llama"] / "config.json").read_text())
    described = {"quant_method": "mxfp4-core", "weights_format": "mxfp4+input_scale"}
    config["quantization_config"] = {**described, "ignore": ["self_attn", "down_proj"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    convert(monkeypatch, WeightConverter("mlp.both", parts, [cut(0)]))
    state = reload(tmp_path).state_dict()
    for index, part in enumerate(parts):
        for key, tensor in stored.items():
            if "both.weight" not in key:
                continue
            rows = slice(96 * index, 96 * index + 96) if tensor.ndim > 1 else slice(None)
            assert torch.equal(state[key.replace("mlp.both", part)].cpu(), tensor[rows])


def test_what_cannot_be_read_is_not_written(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(checkpoints["qwen3_moe"], settings())

    class Lost(WeightRenaming):
        def reverse_transform(self) -> Any:
            return WeightRenaming("up_proj", "other_proj")

    undo = model.hf_quantizer._undo
    lossy = type(undo)(undo.plain, (*undo.rows, Lost("x", "y")), undo.parts)
    monkeypatch.setattr(model.hf_quantizer, "_undo", lossy)
    with pytest.raises(DialectError, match="read again"):
        model.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").iterdir())


def test_a_model_can_be_widened_after_it_was_saved(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint, settings())
    before = logits(model)
    model.save_pretrained(tmp_path / "saved")
    for each in (model, reload(tmp_path / "saved")):
        wide = each.dequantize()
        assert all(tensor.dtype == torch.bfloat16 for tensor in wide.parameters())
        assert (logits(wide) - before).norm() < 0.02 * before.norm()
    wide.save_pretrained(tmp_path / "wide")
    assert set(tensors(tmp_path / "wide")) == set(tensors(checkpoint))
    same_state(load(tmp_path / "wide"), wide)
