"""LoRA adapters of peft on MXFP4 models: they load, run, are trained, saved and loaded again, and merged after all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEVICE, PROMPT, load, logits, settings
from torch import nn
from transformers import AutoModelForCausalLM

from mxfp4_core.errors import FormatError
from mxfp4_core.modules import Mxfp4Linear, Mxfp4Module

peft = pytest.importorskip("peft")
pytestmark = [
    # peft calls transformers by names that this release of it deprecates.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    # It also takes the dense layer of a model with experts for experts of an older checkpoint.
    pytest.mark.filterwarnings("ignore:.*_pattern keys did not match.*:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:target_parameters=.*no parameter was matched:RuntimeWarning"),
]
IDS = PROMPT.to(DEVICE)


def lora(**given: Any) -> Any:
    given.setdefault("target_modules", "all-linear")
    return peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights="gaussian", **given)


def quantised(path: Path, **given: Any) -> Any:
    return load(path, settings(), **given)


def trained(model: Any, *, autocast: bool = False) -> list[float]:
    """Train what wants a gradient, and return the losses."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    assert parameters
    optimizer, losses = torch.optim.Adam(parameters, lr=0.02), []
    for _ in range(2):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
            loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def codes(model: Any) -> list[torch.Tensor]:
    modules = [each for each in model.modules() if isinstance(each, Mxfp4Module)]
    return [each.canonical(matrix).parts["codes"].clone() for each in modules for matrix in each.matrices]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_an_adapter_is_trained_saved_and_loaded_again(
    checkpoints: dict[str, Path], tmp_path: Path, family: str
) -> None:
    torch.manual_seed(0)
    # In float32, since load_adapter gives adapters the dtype of the model, and PeftModel does not.
    base = [quantised(checkpoints[family], dtype=torch.float32) for _ in range(3)]
    model = peft.get_peft_model(base[0], lora())
    wrapped = [name for name, each in model.named_modules() if isinstance(each, peft.tuners.lora.LoraLayer)]
    linears = [each for each in model.modules() if isinstance(each, Mxfp4Linear)]
    assert len(wrapped) == len(linears) if family == "llama" else wrapped
    assert not any("lm_head" in name for name in wrapped)
    before = codes(model)
    losses = trained(model)
    assert losses[1] < losses[0]
    assert all(torch.equal(one, other) for one, other in zip(before, codes(model), strict=True))
    model.save_pretrained(tmp_path)
    want = logits(model.eval())

    again = peft.PeftModel.from_pretrained(base[1], tmp_path)
    assert torch.equal(logits(again.eval()), want)
    base[2].load_adapter(str(tmp_path))
    assert torch.equal(logits(base[2]), want)


def test_an_adapter_of_the_bf16_model_runs(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    made = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    peft.get_peft_model(made, lora(target_modules=["q_proj"])).save_pretrained(tmp_path)
    model = quantised(checkpoints["llama"])
    plain = logits(model)
    model = peft.PeftModel.from_pretrained(model, tmp_path)
    assert isinstance(model.base_model.model.model.layers[0].self_attn.q_proj.base_layer, Mxfp4Linear)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss"])
def test_gradients_are_those_of_the_dequantised_model(checkpoints: dict[str, Path], family: str) -> None:
    given = {"dtype": torch.float32, "attn_implementation": "eager"}
    model, plain = (load(checkpoints[family], settings(), **given) for _ in range(2))
    plain.dequantize()
    found = []
    for each in (model, plain):
        x = each.get_input_embeddings()(IDS).detach().requires_grad_()
        out = each(inputs_embeds=x).logits
        out.backward(torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape))
        assert x.grad is not None
        found.append((out.detach(), x.grad))
    (ours, of_ours), (theirs, of_theirs) = found
    assert (ours - theirs).norm() / theirs.norm() < 1e-5
    assert (of_ours - of_theirs).norm() / of_theirs.norm() < 1e-5


@pytest.mark.parametrize("autocast", [False, True])
def test_the_flow_of_qlora(checkpoints: dict[str, Path], autocast: bool) -> None:
    model = peft.prepare_model_for_kbit_training(quantised(checkpoints["llama"]))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model = peft.get_peft_model(model, lora(target_modules=["q_proj", "down_proj"]))
    losses = trained(model, autocast=autocast)
    assert losses[1] < losses[0]
    assert all(each.grad is None for each in model.parameters() if not each.requires_grad)


@pytest.mark.parametrize("safe", [False, True])
def test_weights_that_are_mxfp4_take_no_merge(checkpoints: dict[str, Path], safe: bool) -> None:
    model = peft.get_peft_model(quantised(checkpoints["llama"]), lora(target_modules=["q_proj"]))
    before = codes(model)
    with pytest.raises(FormatError, match=r"q_proj.weight cannot be written(.|\n)*dequantize"):
        model.merge_and_unload(safe_merge=safe)
    assert all(torch.equal(one, other) for one, other in zip(before, codes(model), strict=True))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changes_the_weights_is_refused(checkpoints: dict[str, Path], init: str) -> None:
    with pytest.raises(FormatError, match="cannot be written"):
        peft.get_peft_model(
            quantised(checkpoints["llama"]),
            peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=init),
        )


def test_a_dequantised_model_is_merged(checkpoints: dict[str, Path]) -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(quantised(checkpoints["qwen3_moe"], dtype=torch.float32), lora())
    trained(model)
    want = logits(model.eval())
    model.dequantize()
    merged = model.merge_and_unload()
    assert type(merged.model.layers[0].self_attn.q_proj) is nn.Linear
    assert not any(isinstance(each, Mxfp4Module) for each in merged.modules())
    assert (logits(merged) - want).norm() / want.norm() < 1e-5


def test_transformers_lets_adapters_be_trained(checkpoints: dict[str, Path]) -> None:
    assert quantised(checkpoints["llama"]).hf_quantizer.is_trainable
