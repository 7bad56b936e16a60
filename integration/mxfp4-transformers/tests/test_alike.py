"""The commands and the loader decide alike, in the words of the file and in those of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import CLASSES, MODELS
from tiny import SIZES, settings, tensors
from transformers import AutoModelForCausalLM

import mxfp4_transformers
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.errors import PatternError
from mxfp4_core.jobs import plan_checkpoint, quantize_checkpoint, verify_checkpoint

CONFIGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in MODELS),
    ("llama", {"ignore": ["model.layers.0", "o_proj"]}),
    ("llama", {"targets": ["mlp"]}),
    ("llama", {"overrides": [{"pattern": "lm_head", "keep": False}]}),
    ("mixtral", {"ignore": ["block_sparse_moe.experts"]}),  # the words of the file
    ("mixtral", {"ignore": ["layers.0.mlp.experts"]}),  # the words of the model
    ("mixtral", {"overrides": [{"pattern": "layers.1.mlp.experts", "keep": True}]}),
    ("qwen3_moe", {"ignore": ["re:.*experts.*"]}),
    ("phi3", {"ignore": ["qkv_proj", "gate_up_proj"]}),
    ("t5", {"ignore": ["decoder"]}),
]


def load(folder: Path, name: str, config: dict[str, Any]) -> Any:
    kind = CLASSES.get(name, AutoModelForCausalLM)
    return kind.from_pretrained(folder, quantization_config=settings(**config), dtype="bfloat16")


@pytest.mark.parametrize(("name", "config"), CONFIGS, ids=str)
def test_plan_and_load_decide_alike(folders: dict[str, Path], name: str, config: dict[str, Any]) -> None:
    plan = plan_checkpoint(folders[name], CoreConfig.from_dict(config))
    model = load(folders[name], name, config)
    view = plan.view
    assert view is not None
    by_command = {
        parameter: row.decision.quantize
        for row in plan.rows
        for parameter in view.tensors[row.name].parameters
    }
    by_loader = {parameter: parameter in model.hf_quantizer.plan.weights for parameter in by_command}
    assert by_command == by_loader
    assert set(model.hf_quantizer.plan.weights) <= set(by_command)
    profiles = {
        parameter: row.decision.profile
        for row in plan.quantized
        for parameter in view.tensors[row.name].parameters
    }
    assert profiles == {each: weight.profile for each, weight in model.hf_quantizer.plan.weights.items()}


@pytest.mark.parametrize("pattern", ["v_proj", "layers.0.mlp.experts.1", "layers.0.mlp.experts.gate_up_proj"])
def test_what_splits_is_refused_by_both(folders: dict[str, Path], pattern: str) -> None:
    with pytest.raises(PatternError, match="would be split"):
        plan_checkpoint(folders["mixtral"], CoreConfig(ignore=[pattern]))
    with pytest.raises(PatternError, match="would be split"):
        load(folders["mixtral"], "mixtral", {"ignore": [pattern]})


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_oss", "t5", "gpt2", "jetmoe"])
def test_the_line_that_loads_a_result_works(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    pytest.importorskip("compressed_tensors")
    load_it = quantize_checkpoint(folders[name], tmp_path / "q").load
    *imports, call = load_it.partition("  #")[0].split("; ")
    space: dict[str, Any] = {}
    exec("; ".join(imports), space)
    model = eval(call, space)
    assert type(model).__name__ in call
    ids = torch.arange(3, 9)[None]
    given = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    assert model(ids, **given).logits.isfinite().all()


def test_large_weights_that_are_no_linears_are_noted(folders: dict[str, Path]) -> None:
    (note,) = plan_checkpoint(folders["xlnet"]).notes
    assert "stays in high precision, since XLNetRelativeAttention is no linear layer" in note
    assert int(note.partition("%")[0]) > 50
    assert plan_checkpoint(folders["llama"]).notes == ()
    (note,) = plan_checkpoint(folders["jetmoe"]).notes
    assert (
        "by its own code, widened in each call: JetMoeParallelExperts is called in a way of its own" in note
    )


def test_what_a_model_keeps_stays_by_every_route(folders: dict[str, Path], tmp_path: Path) -> None:
    quantize_checkpoint(folders["t5"], tmp_path / "q", CoreConfig.from_dict({"dialect": "mxfp4-core"}))
    stored = {name.removesuffix("_scale") for name in tensors(tmp_path / "q") if name.endswith("_scale")}
    assert stored and not any(".wo." in name or name.startswith("shared") for name in stored)
    model = CLASSES["t5"].from_pretrained(tmp_path / "q")
    assert {each for each in model.hf_quantizer.plan.weights} == stored
    assert verify_checkpoint(tmp_path / "q", folders["t5"]).ok
    by_names = plan_checkpoint(folders["t5"], models="none")
    assert any(".wo." in row.name for row in by_names.quantized)  # what names alone cannot tell
    assert by_names.kinds == "kinds by names: models = 'none'"


@pytest.mark.parametrize("ignore", [["o_a_proj"], ["attn.wo_a", "layers.1.ffn.experts"]], ids=str)
def test_names_that_differ_in_several_words(tmp_path: Path, ignore: list[str]) -> None:
    """DeepSeek-V4: ``model.layers.0.self_attn.q_a_proj`` in the model is ``layers.0.attn.wq_a`` in the file."""
    config = transformers.DeepseekV4Config(
        **{**SIZES, "head_dim": 64, "num_key_value_heads": 1},
        moe_intermediate_size=96,
        n_routed_experts=4,
        num_experts_per_tok=2,
        q_lora_rank=64,
        qk_rope_head_dim=32,
        o_lora_rank=32,
        o_groups=2,
        index_head_dim=32,
        index_n_heads=2,
        index_topk=8,
    )
    source = tmp_path / "source"
    transformers.DeepseekV4ForCausalLM(config).to(torch.bfloat16).save_pretrained(source)
    plan = plan_checkpoint(source, CoreConfig(ignore=ignore, family_defaults=False))
    assert plan.view is not None
    by_command = {name for row in plan.quantized for name in plan.view.tensors[row.name].parameters}
    model = load(source, "deepseek_v4", {"ignore": ignore, "family_defaults": False})
    assert set(model.hf_quantizer.plan.weights) == by_command
    assert "model.layers.0.self_attn.q_a_proj.weight" in by_command
    # A tensor of the file is called hc_scale, and is none of the scales.
    quantize_checkpoint(
        source, tmp_path / "q", CoreConfig(ignore=ignore, dialect="mxfp4-core", family_defaults=False)
    )
    stored = mxfp4_transformers.from_pretrained(tmp_path / "q", settings())
    assert set(stored.hf_quantizer.plan.weights) == by_command
    held, wanted = stored.state_dict(), model.state_dict()  # 5.17 cannot compute with this model in bfloat16
    assert list(held) == list(wanted)
    assert all(torch.equal(held[name], wanted[name]) for name in wanted)
