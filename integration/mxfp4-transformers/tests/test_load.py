"""Quantising while loading: the values, the modules, the report."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import DEVICE, PROMPT, load, logits, reload, settings, tensors, widened_model
from torch import nn
from transformers import AutoModel

import mxfp4_transformers
from mxfp4_core import quantize
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear


def test_logits_are_those_of_the_widened_weights(checkpoint: Path) -> None:
    model = load(checkpoint, settings(), dtype=torch.float32)
    names = list(model.hf_quantizer.plan.weights)
    expected = logits(widened_model(checkpoint, names, k_first="gpt_oss" in checkpoint.name))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    plain = logits(load(checkpoint, dtype=torch.float32))
    assert (expected - plain).norm() > 0.01 * plain.norm(), (
        "the weights must matter, or this test shows nothing"
    )


def test_every_linear_and_expert_is_replaced_but_heads_and_routers(checkpoint: Path) -> None:
    model = load(checkpoint, settings())
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert linears == ["lm_head"]
    kinds = {type(module) for module in model.modules()}
    assert Mxfp4Linear in kinds
    assert (Mxfp4Experts in kinds) == any("experts" in name for name, _ in model.named_modules())
    routers = [p for n, p in model.named_parameters() if n.endswith(("gate.weight", "router.weight"))]
    assert all(parameter.dtype == torch.bfloat16 for parameter in routers)


def test_codes_are_those_of_the_core(checkpoints: dict[str, Path]) -> None:
    path = checkpoints["qwen3_moe"]
    model, source = load(path, settings()), tensors(path)
    experts = "model.layers.1.mlp.experts"
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    for index in range(6):
        gate, up, down = (
            quantize(source[f"{experts}.{index}.{part}_proj.weight"]) for part in ("gate", "up", "down")
        )
        assert torch.equal(state[f"{experts}.gate_up_proj"][index], torch.cat((gate.codes, up.codes)))
        assert torch.equal(state[f"{experts}.gate_up_proj_scale"][index], torch.cat((gate.scales, up.scales)))
        assert torch.equal(state[f"{experts}.down_proj"][index], down.codes)
        assert torch.equal(state[f"{experts}.down_proj_scale"][index], down.scales)


def test_biases_survive(checkpoints: dict[str, Path]) -> None:
    for name in ("llama", "gpt_oss"):
        state, source = load(checkpoints[name], settings()).state_dict(), tensors(checkpoints[name])
        biases = [key for key in source if key.endswith("bias")]
        assert len(biases) > 10
        for key in biases:
            assert torch.equal(state[key].cpu(), source[key]), key


def test_generate(checkpoint: Path) -> None:
    model = load(checkpoint, settings(), dtype=torch.float32)
    oracle = widened_model(
        checkpoint, list(model.hf_quantizer.plan.weights), k_first="gpt_oss" in checkpoint.name
    )
    written = []
    for each in (model, oracle):
        prompt = PROMPT.to(each.device)
        mask = torch.ones_like(prompt)
        written.append(each.generate(prompt, attention_mask=mask, max_new_tokens=8, do_sample=False).cpu())
    assert torch.equal(*written)


def test_a_dictionary_will_do(checkpoints: dict[str, Path]) -> None:
    config = {**settings(rule="floor").to_dict(), "quant_method": "mxfp4-core"}
    if DEVICE != "cpu":
        config["backend"] = "reference"
    one, other = load(checkpoints["qwen3"], config), load(checkpoints["qwen3"], settings(rule="floor"))
    assert torch.equal(logits(one), logits(other))
    assert not torch.equal(logits(one), logits(load(checkpoints["qwen3"], settings())))


def test_importing_twice_is_fine() -> None:
    importlib.reload(mxfp4_transformers)
    importlib.reload(mxfp4_transformers)


def test_rules_and_patterns(checkpoints: dict[str, Path]) -> None:
    config = settings(
        profile="quark",
        ignore=["layers.0"],
        overrides=[{"pattern": "down_proj", "rule": "floor", "ties": "away"}],
    )
    model = load(checkpoints["qwen3"], config)
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    assert model.model.layers[1].mlp.up_proj.profile == "quark"
    down = model.model.layers[1].mlp.down_proj
    assert down.profile == "floor/away"
    expected = quantize(
        tensors(checkpoints["qwen3"])["model.layers.1.mlp.down_proj.weight"], rule="floor", ties="away"
    )
    assert torch.equal(down.state_dict()["weight"].cpu(), expected.codes)


def test_patterns_may_use_the_names_on_disk(checkpoints: dict[str, Path]) -> None:
    model = load(checkpoints["mixtral"], settings(ignore=["layers.1.block_sparse_moe.experts"]))
    assert isinstance(model.model.layers[0].mlp.experts, Mxfp4Experts)
    assert not isinstance(model.model.layers[1].mlp.experts, Mxfp4Experts)
    assert model.model.layers[1].mlp.experts.gate_up_proj.dtype == torch.bfloat16


def test_a_tied_head_stays_and_says_why(checkpoints: dict[str, Path]) -> None:
    model = load(checkpoints["qwen3"], settings(keep_defaults=False))
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert "shares its weight" in model.hf_quantizer.plan.reasons["lm_head"]


def test_a_head_of_its_own_can_be_quantised(checkpoints: dict[str, Path]) -> None:
    config = settings(overrides=[{"pattern": "lm_head", "keep": False}])
    assert isinstance(load(checkpoints["llama"], config).lm_head, Mxfp4Linear)


def test_tails_are_padded_on_request(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=80,
        pad_token_id=0,
    )
    plain = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    plain.save_pretrained(tmp_path / "odd")
    model = load(tmp_path / "odd", settings(tail="pad"), dtype=torch.float32)
    expected = logits(widened_model(tmp_path / "odd", list(model.hf_quantizer.plan.weights)))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "saved")
    shapes = json.loads((tmp_path / "saved/config.json").read_text())["quantization_config"]["shapes"]
    assert shapes["model.layers.0.mlp.down_proj.weight"] == [48, 80]


def test_the_report_is_a_line_and_data(
    checkpoints: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mxfp4_transformers"):
        model = load(checkpoints["qwen3_moe"], settings())
    report = model.mxfp4_report
    assert report is model.hf_quantizer.report
    assert any(
        "quantised 12 layers (11 Linear, 1 experts)" in record.getMessage() for record in caplog.records
    )
    assert report.backend == "reference"
    assert report.profile == "even/even"
    reasons = {group.reason for group in report.kept}
    assert any("router" in reason for reason in reasons)
    assert any("output head" in reason for reason in reasons)


def test_the_report_counts_every_byte_once(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint, settings())
    model.save_pretrained(tmp_path)
    before, after = (
        sum(tensor.nbytes for tensor in tensors(path).values()) for path in (checkpoint, tmp_path)
    )
    report = model.mxfp4_report
    assert (report.bytes_before, report.bytes_after) == (before, after)
    again = reload(tmp_path).mxfp4_report
    assert (again.bytes_before, again.bytes_after) == (after, after)


def test_the_model_says_what_is_what(checkpoints: dict[str, Path]) -> None:
    model = load(checkpoints["qwen3_moe"], settings(profile="quark"))
    assert "Mxfp4Experts(n=32, k=64, experts=6, top_k=2" in repr(model)
    text = mxfp4_transformers.summary(model)
    lines = text.splitlines()
    assert lines[0] == "Qwen3MoeForCausalLM: 12 of 24 modules with weights are MXFP4"
    (q_proj,) = (line for line in lines if "q_proj" in line)
    assert "model.layers.{0-1}.self_attn.q_proj" in q_proj
    assert "quark on reference" in q_proj
    (head,) = (line for line in lines if "lm_head" in line)
    assert head.startswith("kept") and "output head" in head


def test_dequantize_gives_the_model_back(checkpoint: Path) -> None:
    model = load(checkpoint, settings(), dtype=torch.float32)
    before = logits(model)
    model.dequantize()
    assert not any(isinstance(module, (Mxfp4Linear, Mxfp4Experts)) for module in model.modules())
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)


def test_sizes_are_announced_before_the_load(checkpoints: dict[str, Path]) -> None:
    # The device map and the warm-up allocation are made of these numbers.
    model = load(checkpoints["gpt_oss"], settings())
    quantizer = model.hf_quantizer
    for name, weight in quantizer.plan.weights.items():
        placeholder = torch.empty(weight.shape, dtype=torch.bfloat16, device="meta")
        assert quantizer.param_element_size(model, name, placeholder) == 0.5
    assert quantizer.param_element_size(model, "lm_head.weight", model.lm_head.weight) == 2


def test_a_model_can_be_copied_and_pickled(checkpoints: dict[str, Path]) -> None:
    model = load(checkpoints["qwen3_moe"], settings())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other), logits(model))


def test_one_config_loads_many_models(checkpoints: dict[str, Path]) -> None:
    config = settings()
    stored = config.to_dict()
    one, other = load(checkpoints["gpt_oss"], config), load(checkpoints["llama"], config)
    assert config.to_dict() == stored
    assert len(one.config.quantization_config.to_dict()["transposed"]) == 4
    assert other.config.quantization_config.to_dict()["transposed"] == []
    assert torch.equal(logits(load(checkpoints["gpt_oss"], config)), logits(one))


def test_the_model_below_the_head(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    whole = load(checkpoints["qwen3_moe"], settings())
    base = AutoModel.from_pretrained(
        checkpoints["qwen3_moe"], quantization_config=settings(), device_map=DEVICE
    )
    whole.save_pretrained(tmp_path / "whole")
    again = reload(tmp_path / "whole", AutoModel)
    wanted = whole.model.state_dict()
    for found in (base.state_dict(), again.state_dict()):
        assert list(found) == list(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    base.save_pretrained(tmp_path / "base")
    headed = reload(tmp_path / "base")
    assert all(torch.equal(headed.model.state_dict()[name], wanted[name]) for name in wanted)


def test_weights_that_come_in_other_ways(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = checkpoints["qwen3_moe"]
    expected = load(path, settings()).state_dict()
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    torch.save(tensors(path), tmp_path / "pytorch_model.bin")
    config = transformers.AutoConfig.from_pretrained(path)
    for source, keywords in ((tmp_path, {}), (None, {"config": config, "state_dict": tensors(path)})):
        found = transformers.Qwen3MoeForCausalLM.from_pretrained(
            source, quantization_config=settings(), device_map=DEVICE, dtype=torch.bfloat16, **keywords
        ).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("device_map", ["auto", {"": DEVICE}, "sequential"])
def test_device_maps(checkpoints: dict[str, Path], device_map: Any) -> None:
    model = load(checkpoints["qwen3_moe"], settings(), device_map=device_map)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {torch.device(DEVICE).type}
    assert torch.equal(logits(model), logits(load(checkpoints["qwen3_moe"], settings())))
