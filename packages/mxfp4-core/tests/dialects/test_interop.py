"""Checkpoints that we write, loaded by transformers' own integration of compressed-tensors."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.jobs.quantize import quantize_checkpoint

pytest.importorskip("compressed_tensors")
transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
DENSE = {**SMALL, "vocab_size": 64, "intermediate_size": 96}


def saved(tmp_path: Path, kind: str, **settings: Any) -> Path:
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def loaded(path: Path, *, dequantize: bool) -> Any:
    settings = (
        {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the vendors' own
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, **settings)


def values(weight: torch.Tensor) -> torch.Tensor:
    return quantize(weight).dequantize(torch.bfloat16)


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("activation", ["none", "mxfp4"])
def test_a_dense_model(tmp_path: Path, dequantize: bool, activation: str) -> None:
    source = saved(tmp_path, "Llama", **DENSE)
    config = Mxfp4Config.from_dict({"dialect": "compressed-tensors", "activation": activation})
    quantize_checkpoint(source, tmp_path / "target", config)
    model = loaded(tmp_path / "target", dequantize=dequantize)
    with torch.no_grad():
        model(torch.arange(8)[None])  # makes it decompress
    original = load_file(source / "model.safetensors")
    state = model.state_dict()
    for name, weight in original.items():
        assert torch.equal(state[name], values(weight) if "proj.weight" in name else weight), name


@pytest.mark.parametrize("activation", ["none", "mxfp4", "fp8"])
def test_their_schema_takes_the_description(tmp_path: Path, activation: str) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    source = saved(tmp_path, "Llama", **DENSE)
    config = Mxfp4Config.from_dict({"dialect": "compressed-tensors", "activation": activation})
    quantize_checkpoint(source, tmp_path / "target", config)
    described = json.loads((tmp_path / "target" / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(described).config_groups["group_0"]
    inputs = scheme.input_activations
    assert (scheme.weights.num_bits, scheme.weights.group_size, scheme.weights.type) == (4, 32, "float")
    assert (inputs and inputs.num_bits) == {"none": None, "mxfp4": 4, "fp8": 8}[activation]


@pytest.mark.parametrize("dequantize", [True, False])
def test_a_mixture_of_experts_with_a_tied_head(tmp_path: Path, dequantize: bool) -> None:
    settings = {
        **DENSE,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
    }
    source = saved(tmp_path, "Qwen3Moe", **settings, tie_word_embeddings=True)
    quantize_checkpoint(source, tmp_path / "target", Mxfp4Config.from_dict({"dialect": "compressed-tensors"}))
    model = loaded(tmp_path / "target", dequantize=dequantize)
    with torch.no_grad():
        model(torch.arange(8)[None])
    original = load_file(source / "model.safetensors")
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        block = model.model.layers[layer]
        assert torch.equal(
            block.self_attn.o_proj.weight, values(original[f"{prefix}self_attn.o_proj.weight"])
        )
        assert torch.equal(block.mlp.gate.weight, original[f"{prefix}mlp.gate.weight"])
        for expert in range(4):
            gate, up, down = (
                values(original[f"{prefix}mlp.experts.{expert}.{part}_proj.weight"])
                for part in ("gate", "up", "down")
            )
            assert torch.equal(block.mlp.experts.gate_up_proj[expert], torch.cat([gate, up]))
            assert torch.equal(block.mlp.experts.down_proj[expert], down)
