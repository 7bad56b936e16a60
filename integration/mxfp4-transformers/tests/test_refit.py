"""New weights for a model that computes: whole or not at all, into the same memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import load, logits, settings, tensors

import mxfp4_transformers
from mxfp4_core.errors import ConfigError, LoadError, NonFiniteError, ShapeError

MODELS = ["llama", "qwen3", "qwen3_moe", "mixtral", "gpt_oss"]


def other(path: Path) -> dict[str, torch.Tensor]:
    """Return weights as a trainer has them after a step."""
    torch.manual_seed(99)
    return {name: (t + 0.1 * torch.randn(t.shape)).to(t.dtype) for name, t in tensors(path).items()}


def fresh(path: Path, weights: dict[str, torch.Tensor], edited: Any) -> Any:
    """Load a model from these weights."""
    return load(edited(path, weights), settings())


def places(model: Any) -> dict[str, int]:
    return {name: buffer.data_ptr() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("name", MODELS)
def test_all_weights_in_any_order(checkpoints: dict[str, Path], edited: Any, name: str) -> None:
    path = checkpoints[name]
    model, weights = load(path, settings()), other(path)
    before, where = logits(model), places(model)

    def sent() -> Iterator[tuple[str, torch.Tensor]]:
        buffer: dict[tuple[int, ...], torch.Tensor] = {}
        for key in random.Random(0).sample(list(weights), len(weights)):
            shape = tuple(weights[key].shape)  # a trainer sends everything of one shape in one buffer
            yield key, buffer.setdefault(shape, torch.empty(shape, dtype=torch.bfloat16)).copy_(weights[key])

    report = mxfp4_transformers.refit(model, sent())
    wanted = fresh(path, weights, edited)
    state = model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in wanted.state_dict().items())
    assert torch.equal(logits(model), logits(wanted)) and not torch.equal(logits(model), before)
    assert places(model) == where
    assert report.backend == "reference" and report.profile == "even/even"


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_under_the_names_of_the_model(checkpoints: dict[str, Path], edited: Any, name: str) -> None:
    path = checkpoints[name]
    model, weights = load(path, settings()), other(path)
    trained = load(edited(path, weights))  # as transformers holds it without us: experts stacked
    mxfp4_transformers.refit(model, dict(trained.named_parameters()))
    wanted = load(edited(path, weights), settings()).state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in model.state_dict().items())


def test_some_experts(checkpoints: dict[str, Path], edited: Any) -> None:
    path = checkpoints["qwen3_moe"]
    model, weights = load(path, settings()), other(path)
    sent = {
        key: tensor for key, tensor in weights.items() if ".experts.3." in key or ".experts.5.down" in key
    }
    assert len(sent) == 4
    mxfp4_transformers.refit(model, sent, subset=True)
    wanted = fresh(path, {**tensors(path), **sent}, edited).state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in model.state_dict().items())


def test_one_bias(checkpoints: dict[str, Path], edited: Any) -> None:
    path = checkpoints["gpt_oss"]
    model = load(path, settings())
    name = "model.layers.1.mlp.experts.down_proj_bias"
    sent = {name: other(path)[name]}
    mxfp4_transformers.refit(model, sent, subset=True)
    assert torch.equal(logits(model), logits(fresh(path, {**tensors(path), **sent}, edited)))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            {"model.layers.1.mlp.experts.3.up_proj.weight": None},
            LoadError,
            r"layers\.1\.mlp\.experts\.gate_up_proj",
        ),
        ({"model.norm.weight": None}, LoadError, r"model\.norm\.weight missing"),
        ({"model.layers.9.mlp.gate.weight": torch.zeros(6, 64)}, LoadError, "no place"),
        ({"model.layers.1.mlp.experts.3.up_proj.weight": torch.zeros(32, 32)}, ShapeError, r"\[32, 32\]"),
        ({"model.layers.1.self_attn.q_proj.weight": torch.full((128, 64), torch.nan)}, NonFiniteError, "nan"),
        (
            {"model.layers.1.mlp.experts.gate_up_proj": torch.zeros(6, 64, 64)},
            LoadError,
            "overlap|covers|twice",
        ),
        (
            {"layers.1.mlp.experts.2.up_proj.weight": torch.zeros(32, 64)},
            LoadError,
            "duplicate|overlap|twice",
        ),
    ],
)
def test_an_error_leaves_the_model_as_it_was(
    checkpoints: dict[str, Path], change: dict[str, Any], error: type[Exception], match: str
) -> None:
    path = checkpoints["qwen3_moe"]
    model = load(path, settings())
    before, where = logits(model), places(model)
    sent = {key: tensor for key, tensor in {**other(path), **change}.items() if tensor is not None}
    with pytest.raises(error, match=match):
        mxfp4_transformers.refit(model, sent)
    assert torch.equal(logits(model), before) and places(model) == where


def test_a_model_of_somebody_else(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="cannot be refitted"):
        mxfp4_transformers.refit(load(checkpoints["llama"]), {})
