"""Parts of a model on the CPU or the disk: the numbers are those of the whole model, and accelerate finds no weight."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEVICE, PROMPT, SIZES, load, logits, settings
from transformers import AutoModelForCausalLM, Llama4ForCausalLM, Llama4TextConfig

import mxfp4_transformers
from mxfp4_core.errors import BackendError, ConfigError
from mxfp4_core.jobs import quantize_checkpoint
from mxfp4_core.modules import Mxfp4Held, Mxfp4Module

pytestmark = [
    pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules:UserWarning"),
    pytest.mark.filterwarnings("ignore:You passed:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]
HERE: Any = DEVICE if DEVICE == "cpu" else 0
DISK = {"model.embed_tokens": HERE, "model.norm": HERE, "model.rotary_emb": HERE, "lm_head": HERE}
DISK |= {"model.layers.0": HERE, "model.layers.1": "disk"}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the files of weights, and beside it one for transformers'."""
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def offloaded(path: Path, where: Any = DISK, **given: Any) -> Any:
    given.setdefault("quantization_config", settings())
    return AutoModelForCausalLM.from_pretrained(
        path, device_map=where, offload_folder=path.parent / "offload", **given
    )


def parked(model: Any) -> dict[str, Mxfp4Module]:
    found = {name: each for name, each in model.named_modules() if isinstance(each, Mxfp4Module)}
    return {name: each for name, each in found.items() if each.parked is not None}


def check_parked(model: Any, layer: str = "layers.1.") -> None:
    """Check that the weights below a layer are no tensors of the model, and all others are."""
    away = parked(model)
    modules = {name for name, each in model.named_modules() if isinstance(each, Mxfp4Module)}
    assert away and away.keys() == {name for name in modules if layer in name}
    for module in away.values():
        biases = {*module.named_biases}
        assert {name for name, _ in module.named_buffers(recurse=False)} <= biases
        assert not [*module.parameters(recurse=False)] or type(module).__name__ not in (
            "Mxfp4Linear",
            "Mxfp4Experts",
        )


def test_logits_are_those_of_the_whole_model(checkpoint: Path, files: Path) -> None:
    whole, model = load(checkpoint, settings()), offloaded(checkpoint)
    check_parked(model)
    assert torch.equal(logits(model), logits(whole)) and torch.equal(logits(model), logits(whole))
    assert not [*files.iterdir()]  # the files have no names
    given = {"do_sample": False, "max_new_tokens": 4}
    assert torch.equal(model.generate(PROMPT.to(DEVICE), **given), whole.generate(PROMPT.to(DEVICE), **given))


@pytest.mark.parametrize("dialect", ["mxfp4-core", "compressed-tensors"])
def test_a_quantised_folder_is_offloaded_as_well(
    checkpoints: dict[str, Path], files: Path, tmp_path: Path, dialect: str
) -> None:
    name = "qwen3_moe"  # experts that are apart on disk and stacked in the model
    quantize_checkpoint(checkpoints[name], tmp_path / "q", settings(dialect=dialect).core)
    want = logits(load(checkpoints[name], settings()))
    model = mxfp4_transformers.from_pretrained(
        tmp_path / "q", settings(), device_map=DISK, offload_folder=tmp_path / "offload"
    )
    check_parked(model)
    assert torch.equal(logits(model), want)
    if dialect == "mxfp4-core":
        plain = offloaded(tmp_path / "q")
        check_parked(plain)
        assert torch.equal(logits(plain), want)


def test_a_linear_with_k_first(folders: dict[str, Path], files: Path) -> None:
    where = dict.fromkeys(["transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"], HERE)
    model = offloaded(folders["gpt2"], {**where, "transformer.h.0": HERE, "transformer.h.1": "disk"})
    check_parked(model, "h.1.")
    assert torch.equal(logits(model), logits(load(folders["gpt2"], settings())))


def test_experts_that_keep_their_own_code(files: Path, tmp_path: Path) -> None:
    config = Llama4TextConfig(
        **SIZES,
        **{"intermediate_size": 96, "intermediate_size_mlp": 96, "num_local_experts": 4},
        attn_temperature_tuning=False,
    )
    torch.manual_seed(0)
    Llama4ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    whole, model = load(tmp_path / "bf16", settings()), offloaded(tmp_path / "bf16")
    check_parked(model)
    assert any(isinstance(each, Mxfp4Held) for each in parked(model).values())
    assert torch.equal(logits(model), logits(whole))


@pytest.mark.skipif(DEVICE != "cpu", reason="what memory is too small for depends on the accelerator")
def test_a_map_that_is_worked_out_may_offload(checkpoints: dict[str, Path], files: Path) -> None:
    model = offloaded(checkpoints["llama"], "auto", max_memory={"cpu": 60_000})
    assert "disk" in model.hf_device_map.values() and parked(model)
    assert torch.equal(logits(model), logits(load(checkpoints["llama"], settings())))


def test_offloaded_buffers_change_nothing(checkpoints: dict[str, Path], files: Path) -> None:
    model = offloaded(checkpoints["qwen3"], offload_buffers=True)
    check_parked(model)
    assert torch.equal(logits(model), logits(load(checkpoints["qwen3"], settings())))
    with pytest.raises(ConfigError, match=r"layers\.1\.\S+\.bias[\s\S]*offload_buffers"):
        offloaded(checkpoints["llama"], offload_buffers=True)


def test_an_offloaded_model_is_saved_copied_and_trained(
    checkpoints: dict[str, Path], files: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    whole, model = load(checkpoints["llama"], settings()), offloaded(checkpoints["llama"])
    want = logits(whole)
    state = whole.state_dict()
    assert all(
        torch.equal(state[name].cpu(), each.cpu())
        for name, each in model.state_dict().items()
        if not each.is_meta
    )
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved")), want)
    assert torch.equal(logits(copy.deepcopy(model)), want)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
    adapted(PROMPT.to(DEVICE), labels=PROMPT.to(DEVICE)).loss.backward()
    grads = [each.grad for name, each in adapted.named_parameters() if "lora_B" in name]
    assert grads and all(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)


def test_what_an_offloaded_model_cannot_do(checkpoints: dict[str, Path], files: Path) -> None:
    model = offloaded(checkpoints["llama"])
    with pytest.raises(ConfigError, match=r"offloaded weights cannot be dequantised[\s\S]*layers\.1"):
        model.dequantize()
    with pytest.raises(ConfigError, match="offloaded weights cannot be refitted"):
        mxfp4_transformers.refit(model, {})
    module = next(iter(parked(model).values()))
    with pytest.raises(BackendError, match="loaded once, and stay where they lie"):
        module.load_state_dict(module.state_dict())
    assert torch.equal(logits(model), logits(load(checkpoints["llama"], settings())))


@pytest.mark.skipif(DEVICE == "cpu", reason="a part on the CPU beside an accelerator needs one")
def test_parts_on_the_host_compute_on_the_accelerator(checkpoint: Path, files: Path) -> None:
    where = {**DISK, "model.layers.0": "cpu", "model.layers.1": "disk"}
    whole = load(checkpoint, settings())
    want = logits(whole)  # libraries take memory of their own at their first call
    before = torch.accelerator.memory_allocated()
    model = offloaded(checkpoint, where)
    check_parked(model, "layers.")
    kept = torch.accelerator.memory_allocated() - before
    assert all(
        tensor.is_pinned()
        for name, each in parked(model).items()
        if "layers.0." in name
        for tensor in each.parked.tensors.values()
    )
    assert torch.equal(logits(model), want)
    assert torch.accelerator.memory_allocated() - before <= kept  # the copies of a call are gone
    weights = sum(weight.nbytes for weight in model.hf_quantizer.plan.weights.values())
    assert kept < sum(each.nbytes for each in whole.state_dict().values()) - weights + (1 << 20)
