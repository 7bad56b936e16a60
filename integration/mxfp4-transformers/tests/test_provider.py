"""The model provider: what transformers says about weights, and what makes it say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import MODELS
from transformers.core_model_loading import WeightRenaming

from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.errors import ModelError
from mxfp4_core.naming import ModelView, describe
from mxfp4_transformers import converters, meta, provider
from mxfp4_transformers.provider import described
from mxfp4_transformers.view import view_of


def seen(folder: Path, **changes: Any) -> ModelView | None:
    checkpoint = open_checkpoint(folder)
    headers = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
    return provider.describe({**checkpoint.config, **changes}, headers)


def headers_of(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (info.dtype, info.shape) for name, info in open_checkpoint(folder).tensors.items()}


def kinds(view: ModelView | None, *names: str) -> list[str]:
    assert view is not None
    return [view.parameters[name].kind for name in names]


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_known_and_the_installed_provider_answers(
    folders: dict[str, Path], name: str
) -> None:
    checkpoint = open_checkpoint(folders[name])
    headers = {each: (info.dtype, info.shape) for each, info in checkpoint.tensors.items()}
    found = describe(checkpoint.config, headers)
    assert found.view is not None and set(found.view.tensors) == set(headers)
    assert found.source == f"kinds by transformers {transformers.__version__}: {found.view.model}"
    assert found.view.model == checkpoint.config["architectures"][0]


def test_experts_routers_heads_and_ties(folders: dict[str, Path]) -> None:
    view = seen(folders["mixtral"])
    names = ("lm_head.weight", "model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.gate_up_proj")
    assert kinds(view, *names) == ["head", "router", "experts"]
    assert view is not None
    stack = view.parameters[names[2]]
    assert (stack.shape, stack.top_k, stack.refusal) == ((4, 192, 64), 2, "")
    assert view.tensors["model.layers.0.block_sparse_moe.experts.3.w1.weight"].parameters == (names[2],)
    tied = seen(folders["qwen3"])
    assert tied is not None
    assert tied.parameters["lm_head.weight"].tied_to == "model.embed_tokens.weight"
    assert tied.parameters["model.embed_tokens.weight"].tied_to == "lm_head.weight"


def test_orientation_of_the_model_and_of_the_file(folders: dict[str, Path]) -> None:
    oss, gpt2 = seen(folders["gpt_oss"]), seen(folders["gpt2"])
    assert oss is not None and gpt2 is not None
    down = oss.parameters["model.layers.0.mlp.experts.down_proj"]
    assert down.k_first and down.shape == (4, 64, 96) and oss.k_first(down.name)
    assert down.gate is not None and (down.gate.limit, down.gate.interleaved) == (7.0, True)
    attention = gpt2.parameters["transformer.h.0.attn.c_attn.weight"]
    assert (attention.kind, attention.shape, attention.k_first) == ("linear", (192, 64), True)
    assert gpt2.k_first(attention.name) and not (attention.refusal or attention.held)
    square = gpt2.tensors["transformer.h.0.attn.c_proj.weight"]  # sizes do not tell: the class does
    assert square.k_first


def test_what_the_model_keeps_in_float32_and_embeddings_by_any_name(folders: dict[str, Path]) -> None:
    view = seen(folders["t5"])
    assert kinds(view, "shared.weight") == ["embedding"]
    assert view is not None
    wo = view.parameters["encoder.block.0.layer.1.DenseReluDense.wo.weight"]
    assert wo.by_nature == "the model keeps it in float32"


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "no_such_model"},
        {"model_type": 7},
        {"architectures": None},
        {"architectures": ["NoSuchModel"]},
        {"architectures": ["BertModel"]},  # a class of another model type
        {"architectures": ["LlamaConfig"]},
    ],
)
def test_what_is_not_its_own_is_left_to_others(folders: dict[str, Path], changes: dict[str, Any]) -> None:
    assert seen(folders["llama"], **changes) is None


def test_code_of_a_checkpoint_is_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit('run')")
    assert seen(folders["llama"], auto_map={"AutoModelForCausalLM": f"{tmp_path}--evil.Model"}) is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": 96, "head_dim": 24}, "by config.json"),
        ({"num_attention_heads": "many"}, "cannot be built"),
        ({"vocab_size": 127}, "by config.json"),
    ],
)
def test_a_config_of_another_model_is_an_error(
    folders: dict[str, Path], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        seen(folders["llama"], **changes)


def test_tensors_of_another_model_are_an_error(folders: dict[str, Path]) -> None:
    config = json.loads((folders["llama"] / "config.json").read_text())
    with pytest.raises(ModelError, match=r"2 of 2 tensors have no place in it, a first"):
        provider.describe(config, {"a": ("BF16", (64, 64)), "b": ("BF16", (64,))})


def test_types_with_the_class_of_another_type(tmp_path: Path) -> None:
    """shieldgemma2 is a Gemma3ForConditionalGeneration, and a GLM-A a GLM-4.6V, each with a config of its own."""
    config = transformers.ShieldGemma2Config().to_dict()
    kind = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["shieldgemma2"]
    assert meta.class_of({**config, "architectures": [kind]}) is getattr(transformers, kind)
    assert meta.class_of({**config, "architectures": ["LlamaForCausalLM"]}) is None


def test_a_matrix_that_the_file_has_as_a_bare_parameter_is_kept(folders: dict[str, Path]) -> None:
    """Step-3.7 cuts ``in_proj_weight`` into three linears: no command could name their codes, so a load keeps them."""
    view = seen(folders["phi3"])
    assert view is not None and not any(each.keep for each in view.parameters.values())
    config = transformers.AutoConfig.from_pretrained(folders["phi3"])
    model = meta.empty(transformers.Phi3ForCausalLM, config.to_dict())
    rule = WeightRenaming("qkv_bare", "qkv_proj.weight")
    headers = {
        name.replace("qkv_proj.weight", "qkv_bare"): each
        for name, each in headers_of(folders["phi3"]).items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(converters, "default_conversions", lambda model: [rule])
        kept = {each.name: each.keep for each in view_of(model, headers).parameters.values() if each.keep}
    assert set(kept) == {f"model.layers.{index}.self_attn.qkv_proj.weight" for index in range(2)}
    assert all("'qkv_bare', which is no weight of a module" in told for told in kept.values())


def test_buffers_have_a_place_and_heads_are_known_by_their_size() -> None:
    config = transformers.ResNetConfig(hidden_sizes=[32, 64], depths=[1, 1], embedding_size=32)
    model = meta.empty(
        transformers.ResNetForImageClassification, {**config.to_dict(), "model_type": "resnet"}
    )
    headers: Any = {
        name: ("I64" if tensor.dtype == torch.int64 else "BF16", tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
    }
    view = described(model, headers)  # more than half of it are statistics of normalisations
    assert set(view.tensors) == set(headers)
    assert kinds(view, "classifier.1.weight") == ["head"]
    assert kinds(view, "resnet.embedder.embedder.normalization.running_mean") == ["other"]
