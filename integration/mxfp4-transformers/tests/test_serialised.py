"""Checkpoints that somebody quantised, in every dialect: their own bytes, on the chosen backend, in one line."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from serialised import DIALECTS, from_pretrained, no_activations, rounding, same
from tiny import DEVICE, load, logits, settings, tensors, widened_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

import mxfp4_transformers
from mxfp4_core import quantize
from mxfp4_core.errors import (
    BackendError,
    ConfigError,
)
from mxfp4_core.loader import filling
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear
from mxfp4_transformers import Mxfp4Config


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "mixtral"])
def test_the_bytes_of_the_folder_are_the_bytes_of_the_model(
    checkpoints: dict[str, Path], made: Callable[[str, str], Path], name: str, dialect: str
) -> None:
    model = from_pretrained(made(name, dialect))
    source = load(checkpoints[name], settings(profile="quark"))
    same(model, source)
    assert torch.equal(logits(model), logits(source))
    assert model.mxfp4_report.backend == "reference"
    assert {module.profile for module in model.modules() if isinstance(module, Mxfp4Linear)} <= {"quark", ""}
    assert model.name_or_path == str(made(name, dialect))
    if dialect == "quark":
        assert model.mxfp4_report.profile == "quark"


def test_gpt_oss_as_it_is_published(gpt_oss: Path, checkpoints: dict[str, Path]) -> None:
    model = from_pretrained(gpt_oss, dtype=torch.float32)
    experts = [module for module in model.modules() if isinstance(module, Mxfp4Experts)]
    assert len(experts) == 2 and all(module.problem.gate.interleaved for module in experts)
    assert not any(isinstance(module, Mxfp4Linear) for module in model.modules())
    own = AutoModelForCausalLM.from_pretrained(
        gpt_oss, quantization_config=transformers.Mxfp4Config(dequantize=True), dtype=torch.float32
    )
    # 5.17 widens to bfloat16 whatever dtype is asked for; that holds every value exactly.
    torch.testing.assert_close(logits(model), logits(own.float()), rtol=1e-4, atol=1e-4)
    source = quantize(
        tensors(checkpoints["gpt_oss"])["model.layers.0.mlp.experts.down_proj"].transpose(-1, -2),
        profile="triton-kernels",
    )
    assert torch.equal(model.state_dict()["model.layers.0.mlp.experts.down_proj"].cpu(), source.codes)


ORIGINAL = (
    (r"model\.layers\.(\d+)\.input_layernorm\.weight", r"block.\1.attn.norm.scale"),
    (r"model\.layers\.(\d+)\.self_attn\.o_proj\.", r"block.\1.attn.out."),
    (r"model\.layers\.(\d+)\.self_attn\.sinks", r"block.\1.attn.sinks"),
    (r"model\.layers\.(\d+)\.post_attention_layernorm\.weight", r"block.\1.mlp.norm.scale"),
    (r"model\.layers\.(\d+)\.mlp\.router\.", r"block.\1.mlp.gate."),
    (r"model\.layers\.(\d+)\.mlp\.experts\.gate_up_proj_(blocks|scales)", r"block.\1.mlp.mlp1_weight.\2"),
    (r"model\.layers\.(\d+)\.mlp\.experts\.down_proj_(blocks|scales)", r"block.\1.mlp.mlp2_weight.\2"),
    (r"model\.layers\.(\d+)\.mlp\.experts\.gate_up_proj_bias", r"block.\1.mlp.mlp1_bias"),
    (r"model\.layers\.(\d+)\.mlp\.experts\.down_proj_bias", r"block.\1.mlp.mlp2_bias"),
    (r"model\.embed_tokens\.", "embedding."),
    (r"model\.norm\.weight", "norm.scale"),
    (r"lm_head\.", "unembedding."),
)


def test_gpt_oss_in_the_files_of_openai(gpt_oss: Path, tmp_path: Path) -> None:
    """Their config.json names no model_type, and calls the sizes by other names."""
    stored, written = tensors(gpt_oss), dict[str, torch.Tensor]()
    for name, tensor in stored.items():
        for pattern, new in ORIGINAL:
            if re.match(pattern, name):
                written[re.sub(pattern, new, name)] = tensor
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [stored[f"model.layers.{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            written[f"block.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
    save_file(written, tmp_path / "model.safetensors")
    described = json.loads((gpt_oss / "config.json").read_text())
    names = {"num_local_experts": "num_experts", "num_experts_per_tok": "experts_per_token"}
    sizes = {
        names.get(key, key): value
        for key, value in described.items()
        if type(value) in (int, float)
        and key.startswith(("num_", "hidden", "vocab", "head", "inter", "sliding"))
    }
    rope = {"rope_theta": 10000.0, "rope_scaling_factor": 1.0, "initial_context_length": 128}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, **rope, "swiglu_limit": 7.0}))
    same(from_pretrained(tmp_path), from_pretrained(gpt_oss))


def test_gpt_oss_saved_in_our_dialect(gpt_oss: Path, tmp_path: Path) -> None:
    model = from_pretrained(gpt_oss)
    model.save_pretrained(tmp_path)
    same(from_pretrained(tmp_path), model)
    assert torch.equal(logits(from_pretrained(tmp_path)), logits(model))


def test_a_checkpoint_in_high_precision_is_quantised(checkpoints: dict[str, Path]) -> None:
    model = from_pretrained(checkpoints["qwen3_moe"], Mxfp4Config(rule="floor", backend="reference"))
    same(model, load(checkpoints["qwen3_moe"], settings(rule="floor")))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_values_are_those_of_the_widened_weights(
    checkpoints: dict[str, Path], made: Callable[[str, str], Path], dialect: str
) -> None:
    model = from_pretrained(made("qwen3_moe", dialect), dtype=torch.float32)
    expected = widened_model(checkpoints["qwen3_moe"], list(model.hf_quantizer.plan.weights), profile="quark")
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_saved_again_it_has_the_names_and_bytes_that_it_had(
    made: Callable[[str, str], Path], tmp_path: Path, name: str, dialect: str
) -> None:
    model = from_pretrained(made(name, dialect))
    model.save_pretrained(tmp_path / "again")
    saved, first = tensors(tmp_path / "again"), tensors(made(name, "mxfp4-core"))
    assert saved.keys() == first.keys()
    assert all(torch.equal(saved[key], first[key]) for key in first)
    same(load(tmp_path / "again"), model) if DEVICE == "cpu" else None
    mxfp4_transformers.save(model, tmp_path / "converted", dialect=dialect)
    assert all(
        torch.equal(t, tensors(made(name, dialect))[n]) for n, t in tensors(tmp_path / "converted").items()
    )


def test_other_classes_of_model(made: Callable[[str, str], Path]) -> None:
    path = made("qwen3_moe", "compressed-tensors")
    whole, base = from_pretrained(path), from_pretrained(path, auto_class=AutoModel)
    named = from_pretrained(path, auto_class=transformers.Qwen3MoeForCausalLM)
    same(base, whole.model)
    same(named, whole)
    loaded, info = from_pretrained(path, output_loading_info=True)
    same(loaded, whole)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_what_the_folder_says_is_what_is_computed(made: Callable[[str, str], Path], tmp_path: Path) -> None:
    path = rounding(made("llama", "quark"), tmp_path)
    plain, model = from_pretrained(made("llama", "quark")), from_pretrained(path)
    modes = {module.problem.activation for module in model.modules() if isinstance(module, Mxfp4Linear)}
    assert modes == {"mxfp4"}
    assert not torch.equal(logits(plain), logits(model))
    same(plain, model)


def test_activations_can_be_left_alone_by_name(
    made: Callable[[str, str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = rounding(made("llama", "quark"), tmp_path)
    with caplog.at_level(logging.WARNING, "mxfp4_transformers"):
        model = from_pretrained(path, Mxfp4Config(backend="reference", activation="none"))
    assert any("made for mxfp4" in record.getMessage() for record in caplog.records)
    assert torch.equal(logits(model), logits(from_pretrained(made("llama", "quark"))))
    with pytest.raises(ConfigError, match="activation: 'fp8' asked, 'mxfp4' in the folder"):
        from_pretrained(path, Mxfp4Config(backend="reference", activation="fp8"))


def test_a_backend_for_weights_alone_runs_the_folder_and_says_so(
    made: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain, path = from_pretrained(made("llama", "quark")), rounding(made("llama", "quark"), tmp_path)
    no_activations(monkeypatch)
    with caplog.at_level(logging.WARNING, "mxfp4_core.modules"):
        model = from_pretrained(path, Mxfp4Config(backend="reference"))
    (said,) = [record.getMessage() for record in caplog.records if record.name == "mxfp4_core.modules"]
    assert "made for activations in mxfp4" in said and "activation='mxfp4' insists" in said
    assert torch.equal(logits(model), logits(plain))
    same(plain, model)
    assert "activations in high precision instead of mxfp4" in mxfp4_transformers.summary(model)
    # What is saved says what the folder said.
    model.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert saved["activation"] == "mxfp4"
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), logits(plain))


def test_who_names_the_activation_gets_it_or_an_error(
    made: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rounding(made("llama", "quark"), tmp_path)
    no_activations(monkeypatch)
    with pytest.raises(BackendError, match="weights only"):
        from_pretrained(path, Mxfp4Config(backend="reference", activation="mxfp4"))


def test_weights_are_read_in_pieces(
    made: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = from_pretrained(made("qwen3_moe", "quark"))
    sizes: list[int] = []
    copy = torch.Tensor.copy_

    def noted(self: torch.Tensor, source: torch.Tensor, *args: Any) -> torch.Tensor:
        if self.dtype == torch.uint8:
            sizes.append(source.nbytes)
        return copy(self, source, *args)

    with monkeypatch.context() as patch:
        patch.setattr(filling, "_PIECE", 256)
        patch.setattr(torch.Tensor, "copy_", noted)
        model = from_pretrained(made("qwen3_moe", "quark"))
    same(model, whole)
    expert = 2 * 32 * 64 // 2  # a stack is read one expert at a time, anything else by rows
    assert len(sizes) > 100 and max(sizes) == expert


@pytest.mark.parametrize("device_map", ["auto", {"": DEVICE}, "sequential"])
def test_device_maps(made: Callable[[str, str], Path], device_map: Any) -> None:
    model = from_pretrained(made("qwen3_moe", "quark"), device_map=device_map)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {torch.device(DEVICE).type}
    same(model, from_pretrained(made("qwen3_moe", "quark")))


def test_linears_that_the_folder_keeps(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    config = settings(ignore=["layers.0.mlp"], overrides=[{"pattern": "lm_head", "keep": False}])
    source = load(checkpoints["llama"], config)
    mxfp4_transformers.save(source, tmp_path / "kept", dialect="compressed-tensors")
    model = from_pretrained(tmp_path / "kept")
    same(model, source)
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    assert isinstance(model.lm_head, Mxfp4Linear)
    model.save_pretrained(tmp_path / "again")
    again = from_pretrained(tmp_path / "again")
    same(again, source)
    stored = json.loads((tmp_path / "again/config.json").read_text())["quantization_config"]
    assert stored["ignore"] and stored["overrides"]
