"""What people do with a loaded model: count it, cast it, copy it, compile it, train above it."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEVICE, PROMPT, load, logits, settings
from transformers import AutoModelForCausalLM

from mxfp4_core.errors import BackendError
from mxfp4_core.modules import Mxfp4Module, prepare_model

IDS = PROMPT.to(DEVICE)
FAMILIES = ["llama", "qwen3_moe", "gpt_oss"]


def quantised(path: Path, **given: Any) -> Any:
    return load(path, settings(), **given)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_as_they_were_and_bytes_as_they_are(
    checkpoints: dict[str, Path], family: str
) -> None:
    plain, model = AutoModelForCausalLM.from_pretrained(checkpoints[family]), quantised(checkpoints[family])
    for embeddings in (False, True):
        found = model.num_parameters(exclude_embeddings=embeddings)
        assert found == plain.num_parameters(exclude_embeddings=embeddings)
    memory = {each.data_ptr(): each.nbytes for each in (*model.parameters(), *model.buffers())}
    assert model.get_memory_footprint() == sum(memory.values()) < plain.get_memory_footprint()
    assert copy.deepcopy(model).num_parameters() == plain.num_parameters()
    model.dequantize()
    assert model.num_parameters() == plain.num_parameters()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_the_dtypes_of_the_model_in_high_precision(
    checkpoints: dict[str, Path], family: str, dtype: torch.dtype
) -> None:
    given = {"dtype": dtype, "attn_implementation": "eager"}
    model, plain = (load(checkpoints[family], settings(), **given) for _ in range(2))
    plain.dequantize()
    with torch.autocast(DEVICE, dtype=torch.bfloat16), torch.no_grad():
        ours, theirs = (each(IDS, output_hidden_states=True) for each in (model, plain))
    for one, other in zip(
        (ours.logits, *ours.hidden_states), (theirs.logits, *theirs.hidden_states), strict=True
    ):
        assert one.dtype == other.dtype
        assert (one - other).float().norm() / other.float().norm() < 2.0**-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(checkpoints: dict[str, Path], family: str) -> None:
    model, found = quantised(checkpoints[family], attn_implementation="eager").train(), []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        x = model.get_input_embeddings()(IDS).detach().requires_grad_()
        model(inputs_embeds=x, use_cache=False).logits.float().sum().backward()
        found.append(x.grad)
    assert torch.equal(*found) and found[0].count_nonzero()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_computes_the_same_and_shares_nothing(
    checkpoints: dict[str, Path], family: str, how: str
) -> None:
    model = quantised(checkpoints[family])
    want = logits(model)
    other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    mine = {each.data_ptr() for each in model.buffers() if each.numel()}
    assert not mine & {each.data_ptr() for each in other.buffers() if each.numel()}
    for each in other.modules():
        if isinstance(each, Mxfp4Module):
            for buffer in each.buffers():
                buffer.zero_()
    assert torch.equal(logits(model), want) and not torch.equal(logits(other), want)


def _logits(model: Any, answer: Any) -> None:
    torch.set_num_threads(1)
    answer.send_bytes(pickle.dumps(logits(model).float().numpy()))


@pytest.mark.skipif(DEVICE != "cpu", reason="a process of its own would start the device")
def test_a_model_goes_to_another_process(checkpoints: dict[str, Path]) -> None:
    model = quantised(checkpoints["qwen3_moe"])
    here, there = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_logits, args=(pickle.loads(pickle.dumps(model)), there)
    )
    process.start()
    assert here.poll(60)
    found = torch.from_numpy(pickle.loads(here.recv_bytes()))
    process.join()
    assert torch.equal(found, logits(model).float())


# torch.compile imports modules of torch that use what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_not_compiled_for_every_step(checkpoints: dict[str, Path]) -> None:
    model = quantised(checkpoints["llama"])
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for length in (5, 6):
            out = compiled(IDS[:, :length], use_cache=False).logits
            assert torch.equal(out, model(IDS[:, :length], use_cache=False).logits)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for length in (8, 9, 11):
            compiled(IDS[:, :length], use_cache=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("cast", ["half", "float"])
def test_casts_that_transformers_refuses_say_so(checkpoints: dict[str, Path], cast: str) -> None:
    with pytest.raises(ValueError, match="not supported for quantized model"):
        getattr(quantised(checkpoints["llama"]), cast)()


def test_a_model_in_another_dtype_is_prepared_again(checkpoints: dict[str, Path]) -> None:
    model = quantised(checkpoints["llama"])
    before = {name: each.clone() for name, each in model.state_dict().items() if each.dtype == torch.uint8}
    model.to(torch.float32)
    assert all(torch.equal(each, model.state_dict()[name]) for name, each in before.items())
    with pytest.raises(BackendError, match="prepare_model"):
        logits(model)
    prepare_model(model, backend="reference", dtype=torch.float32)
    want = load(checkpoints["llama"], settings(), dtype=torch.float32)
    assert (logits(model) - logits(want)).norm() / logits(want).norm() < 1e-6


def test_a_model_without_memory(checkpoints: dict[str, Path]) -> None:
    model = quantised(checkpoints["llama"])
    model.to("meta")
    assert all(each.is_meta for each in (*model.parameters(), *model.state_dict().values()))
    with pytest.raises(BackendError, match="prepare_model"):
        model(IDS.to("meta"))


def test_modes_and_gradients_of_a_model(checkpoints: dict[str, Path]) -> None:
    model = quantised(checkpoints["llama"])
    want = logits(model)
    assert torch.equal(logits(model.train()), want) and model.model.layers[0].mlp.up_proj.training
    assert not model.eval().model.layers[0].mlp.up_proj.training
    model.requires_grad_(True)
    assert not any(each.requires_grad for each in model.buffers())
    model(IDS, labels=IDS).loss.backward()
    assert model.get_input_embeddings().weight.grad.count_nonzero()
    model.requires_grad_(False)
    assert not model(IDS).logits.requires_grad
