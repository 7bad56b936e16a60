"""LoRA adapters of peft on stacked experts that are MXFP4 (``target_parameters``): as on the dequantised model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEVICE, PROMPT, load, logits, settings
from torch import nn
from transformers import AutoModelForCausalLM

from mxfp4_core.errors import FormatError
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Module

peft = pytest.importorskip("peft")
pytestmark = [
    # peft calls transformers by names that this release of it deprecates.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*_pattern keys did not match.*:RuntimeWarning"),
    # The dense layer of the model with experts has no parameters of that name.
    pytest.mark.filterwarnings("error:.*no parameter was matched:RuntimeWarning"),
]
IDS = PROMPT.to(DEVICE)
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def lora(parameters: list[str], **given: Any) -> Any:
    given.setdefault("target_modules", [])
    return peft.LoraConfig(
        r=3, task_type="CAUSAL_LM", init_lora_weights=False, target_parameters=parameters, **given
    )


def pair(path: Path, config: Any, **given: Any) -> tuple[Any, Any]:
    """Return the same adapter on the MXFP4 model, and on the model with the same values in float32."""
    given = {"dtype": torch.float32, "attn_implementation": "eager", **given}
    models = [load(path, settings(), **given) for _ in range(2)]
    models[1].dequantize()
    assert any(isinstance(each, Mxfp4Module) for each in models[0].modules())
    wrapped = []
    for each in models:
        torch.manual_seed(0)
        wrapped.append(peft.get_peft_model(each, config))
    return wrapped[0], wrapped[1]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("parameters", [BOTH, BOTH[:1], BOTH[1:]], ids=["both", "gate_up", "down"])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_it_computes_and_learns_as_on_the_dequantised_model(
    checkpoints: dict[str, Path], family: str, parameters: list[str]
) -> None:
    model, plain = pair(checkpoints[family], lora(parameters, target_modules=["q_proj"]))
    assert_close(logits(model), logits(plain))
    ours, theirs = gradients(model), gradients(plain)
    assert ours.keys() == theirs.keys()
    assert any("experts" in name for name in ours)
    for name, grad in theirs.items():
        assert_close(ours[name], grad)
    changed = logits(model)
    with model.disable_adapter(), plain.disable_adapter():
        assert_close(logits(model), logits(plain))
        assert (changed - logits(model)).norm() > 0.01 * changed.norm()


def test_experts_with_code_of_their_own_take_adapters(folders: dict[str, Path]) -> None:
    model, plain = pair(folders["jetmoe"], lora(["input_linear.weight", "output_linear.weight"]))
    assert_close(logits(model), logits(plain))
    ours, theirs = gradients(model), gradients(plain)
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert_close(ours[name], grad)


def test_two_adapters_at_once_are_added(checkpoints: dict[str, Path]) -> None:
    model, plain = pair(checkpoints["qwen3_moe"], lora(BOTH))
    for each in (model, plain):
        torch.manual_seed(1)
        each.add_adapter("other", lora(BOTH))
        each.base_model.set_adapter(["default", "other"])
    assert_close(logits(model), logits(plain))
    ours, theirs = gradients(model), gradients(plain)
    assert {name for name in ours if "other" in name}
    for name, grad in theirs.items():
        assert_close(ours[name], grad)


def test_a_weight_of_a_linear_is_a_parameter_too(checkpoints: dict[str, Path]) -> None:
    model, plain = pair(checkpoints["llama"], lora(["q_proj.weight"]))
    assert_close(logits(model), logits(plain))
    ours, theirs = gradients(model), gradients(plain)
    for name, grad in theirs.items():
        assert_close(ours[name], grad)


def test_it_is_trained_saved_and_loaded_again(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    base = [load(checkpoints["qwen3_moe"], settings(), dtype=torch.float32) for _ in range(3)]
    plain = logits(base[0])
    model = peft.get_peft_model(base[0], lora(BOTH))
    before = {name: each.clone() for name, each in base[0].state_dict().items() if "lora" not in name}
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.02)
    losses = []
    for _ in range(3):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    after = base[0].state_dict()
    assert [name for name in after if "lora" not in name] == list(before)
    assert all(torch.equal(after[name], each) for name, each in before.items())
    model.save_pretrained(tmp_path)
    want = logits(model.eval())

    again = peft.PeftModel.from_pretrained(base[1], tmp_path)
    assert torch.equal(logits(again.eval()), want)
    base[2].load_adapter(str(tmp_path))
    assert torch.equal(logits(base[2]), want)
    bare = model.unload()
    assert torch.equal(logits(bare), plain)
    assert any(type(each) is Mxfp4Experts for each in bare.modules())


def test_an_adapter_of_the_bf16_model_runs(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoints["gpt_oss"]), lora(BOTH))
    made.save_pretrained(tmp_path)
    models = [load(checkpoints["gpt_oss"], settings(), dtype=torch.float32) for _ in range(2)]
    models[1].dequantize()
    one, other = (peft.PeftModel.from_pretrained(each, tmp_path).eval() for each in models)
    assert_close(logits(one), logits(other))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_flow_of_qlora(checkpoints: dict[str, Path], checkpointing: bool) -> None:
    model = load(checkpoints["qwen3_moe"], settings())
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    model = peft.get_peft_model(model, lora(BOTH))
    model.train()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss = model(IDS, labels=IDS).loss
    loss.backward()
    grads = [each.grad for each in model.parameters() if each.requires_grad]
    assert grads
    assert all(each is not None and bool(each.isfinite().all()) for each in grads)


def test_a_merge_is_refused_and_works_after_dequantising(checkpoints: dict[str, Path]) -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(
        load(checkpoints["gpt_oss"], settings(), dtype=torch.float32), lora(BOTH, target_modules=["q_proj"])
    )
    want = logits(model.eval())
    for safe in (False, True):
        with pytest.raises(FormatError, match=r"proj(.weight)? cannot be written(.|\n)*dequantize"):
            model.merge_and_unload(safe_merge=safe)
    assert torch.equal(logits(model), want)
    model.dequantize()
    merged = model.merge_and_unload()
    assert not any(isinstance(each, Mxfp4Module) for each in merged.modules())
    assert_close(logits(merged), want)


def test_the_sum_is_not_made(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = peft.get_peft_model(load(checkpoints["qwen3_moe"], settings()), lora(BOTH))
    widened: list[str] = []
    experts = next(each for each in model.modules() if isinstance(each, Mxfp4Experts))
    monkeypatch.setattr(type(experts), "_say_widened", staticmethod(widened.append))
    gradients(model)
    assert widened == []


def test_others_are_not_shown_weights_as_parameters(checkpoints: dict[str, Path]) -> None:
    model = load(checkpoints["qwen3_moe"], settings())
    experts = next(each for each in model.modules() if isinstance(each, Mxfp4Experts))
    assert list(experts.named_parameters(recurse=False)) == []
    assert list(experts.parameters()) == []
    assert not any("experts" in name for name, _ in model.named_parameters())
    assert isinstance(experts.gate_up_proj, torch.Tensor)
    assert not isinstance(experts.gate_up_proj, nn.Parameter)
