"""The backend that a device gets unnamed, against ``reference`` on the same device; for ``MXFP4_TEST_DEVICE``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEVICE, PROMPT, load, logits, settings, tensors

import mxfp4_transformers
from mxfp4_core.backend import Device, Problem, explain
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear
from mxfp4_transformers import Mxfp4Config


@pytest.fixture
def chosen() -> str:
    """The name of the backend that a bfloat16 layer gets there."""
    if DEVICE == "cpu":
        pytest.skip("MXFP4_TEST_DEVICE names no accelerator")
    choice = explain(Problem(op="linear", n=64, k=64, device=Device.of(DEVICE))).choice
    if choice is None:
        pytest.skip(f"no backend is automatic on {DEVICE}")
    return choice.name


def backends(model: Any) -> set[str]:
    layers = [module for module in model.modules() if isinstance(module, Mxfp4Linear | Mxfp4Experts)]
    return {layer.backend.name if layer.backend else "none" for layer in layers}


def test_it_is_chosen_and_computes_what_the_reference_does(checkpoint: Path, chosen: str) -> None:
    named = load(checkpoint, settings(), dtype=torch.bfloat16)
    model = load(checkpoint, Mxfp4Config(), dtype=torch.bfloat16)
    assert backends(named) == {"reference"} and backends(model) == {chosen}
    want, got = logits(named).float(), logits(model).float()
    # Both round every activation to bfloat16, at a sum in another order: a few units in the last place.
    assert (got - want).norm() < 0.03 * want.norm()


def test_it_generates(checkpoint: Path, chosen: str) -> None:
    model = load(checkpoint, Mxfp4Config(), dtype=torch.bfloat16)
    prompt = PROMPT.to(model.device)
    mask = torch.ones_like(prompt)
    written = [
        model.generate(prompt, attention_mask=mask, max_new_tokens=8, do_sample=False).cpu() for _ in range(2)
    ]
    assert torch.equal(*written) and written[0].shape == (1, PROMPT.shape[1] + 8)


def test_saving_gives_the_bytes_of_the_reference(checkpoint: Path, chosen: str, tmp_path: Path) -> None:
    model, named = load(checkpoint, Mxfp4Config()), load(checkpoint, settings())
    state, want = model.state_dict(), named.state_dict()
    assert state.keys() == want.keys()
    assert all(torch.equal(state[name], want[name]) for name in want)


@pytest.mark.parametrize(
    "name", ["llama-compressed-tensors", "qwen3_moe-quark", "qwen3_moe-mxfp4-core", "gpt_oss"]
)
def test_a_quantised_folder_runs_on_it(
    name: str, made: Callable[[str, str], Path], gpt_oss: Path, chosen: str
) -> None:
    path = gpt_oss if name == "gpt_oss" else made(*name.split("-", 1))
    named, model = (
        mxfp4_transformers.from_pretrained(path, config, device_map=DEVICE, dtype=torch.bfloat16)
        for config in (settings(), Mxfp4Config())
    )
    assert backends(named) == {"reference"} and backends(model) == {chosen}
    state, want = model.state_dict(), named.state_dict()
    assert all(torch.equal(state[key], want[key]) for key in want)
    got, expected = logits(model).float(), logits(named).float()
    assert (got - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt_oss"])
def test_a_captured_graph_gives_the_new_result_after_a_refit(
    name: str, checkpoints: dict[str, Path], chosen: str
) -> None:
    path = checkpoints[name]
    model = load(path, Mxfp4Config(), dtype=torch.bfloat16)
    mlp = model.model.layers[1].mlp
    layer = mlp.up_proj if name == "llama" else mlp.experts
    x = torch.randn(4, 64, dtype=torch.bfloat16, device=DEVICE)
    routes = (torch.arange(8, device=DEVICE).view(4, 2) % 4, torch.rand(4, 2, device=DEVICE).bfloat16())
    arguments = (x,) if name == "llama" else (x, *routes)
    with torch.no_grad():
        for _ in range(3):
            layer(*arguments)
        torch.accelerator.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = layer(*arguments)
        graph.replay()
        before = result.clone()
        torch.manual_seed(5)
        sent = {key: (t + 0.1 * torch.randn(t.shape)).to(t.dtype) for key, t in tensors(path).items()}
        mxfp4_transformers.refit(model, sent)
        graph.replay()
        assert torch.equal(result, layer(*arguments)) and not torch.equal(result, before)
