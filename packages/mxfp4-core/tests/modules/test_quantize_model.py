"""Quantise a model in memory: the bytes, the memory, and what is refused before a weight is touched."""

from __future__ import annotations

import ast
import logging
import re
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from mxfp4_core import quantize
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import BackendError, ConfigError, Mxfp4Error, NonFiniteError, ShapeError
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear, Mxfp4Module, quantize_


class Experts(nn.Module):
    """A stack of experts as transformers writes it."""

    top_k = 2

    def __init__(self, experts: int, n: int, k: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(experts, 2 * n, k) / k**0.5)
        self.down_proj = nn.Parameter(torch.randn(experts, k, n) / n**0.5)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        return nn.functional.silu(gate) * up

    def forward(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for token, (row, chosen, share) in enumerate(zip(x, ids, weights, strict=True)):
            for expert, weight in zip(chosen.tolist(), share, strict=True):
                hidden = self._apply_gate(self.gate_up_proj[expert] @ row)
                out[token] += weight * (self.down_proj[expert] @ hidden)
        return out


class Block(nn.Module):
    def __init__(self, width: int = 64, hidden: int = 96) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.up_proj, self.down_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(torch.relu(self.up_proj(self.q_proj(x) + self.k_proj(x))))


class Model(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(16, 64)
        self.layers = nn.ModuleList(blocks)
        self.lm_head = nn.Linear(64, 16, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def printed_ignore(error: Mxfp4Error) -> list[str]:
    """Return the patterns that a message advises, as a reader would copy them."""
    found = re.search(r"ignore=(\[.*?\])(?:,|$)", error.fix)
    assert found, error.fix
    return list(ast.literal_eval(found[1]))


def test_the_model_computes_with_the_values_of_its_codes() -> None:
    model = Model(Block(), Block())
    weights = {
        name: module.weight.detach().clone() for name, module in model.named_modules() if name[-5:] == "_proj"
    }
    ids = torch.arange(5)
    done = quantize_(model, Mxfp4Config())
    assert done.model is model
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, Mxfp4Module)}
    assert kinds == dict.fromkeys(weights, Mxfp4Linear)
    assert type(model.lm_head) is nn.Linear and "output head" in done.plan.reasons["lm_head"]
    for name, weight in weights.items():
        expected, state = quantize(weight), model.get_submodule(name).state_dict()
        assert torch.equal(state["weight"], expected.codes)
        assert torch.equal(state["weight_scale"], expected.scales)
    assert {each.backend.name for each in done.selections.values()} == {"reference"}
    assert "8 of 10 modules with weights are MXFP4" in str(done)
    x = model.embed_tokens(ids)
    oracle = Block()
    for name in ("q_proj", "k_proj", "up_proj", "down_proj"):
        linear, packed = oracle.get_submodule(name), model.layers[0].get_submodule(name)
        linear.weight.data = quantize(weights[f"layers.0.{name}"]).dequantize(torch.float32)
        if linear.bias is not None:
            linear.bias.data = packed.bias
    torch.testing.assert_close(model.layers[0](x), oracle(x), rtol=1e-4, atol=1e-4)


def test_stacks_of_experts() -> None:
    block = nn.Module()
    block.experts = Experts(4, 32, 64)
    block.top_k = 2
    oracle = Experts(4, 32, 64)
    for name in ("gate_up_proj", "down_proj"):
        values = quantize(getattr(block.experts, name).detach()).dequantize(torch.float32)
        getattr(oracle, name).data = values
    quantize_(block)
    assert isinstance(block.experts, Mxfp4Experts)
    x, ids, shares = torch.randn(3, 64), torch.tensor([[0, 1], [2, 3], [1, 3]]), torch.rand(3, 2)
    torch.testing.assert_close(block.experts(x, ids, shares), oracle(x, ids, shares), rtol=1e-4, atol=1e-4)


def test_one_weight_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(Block(), Block())
    before = [weakref.ref(m.weight) for n, m in model.named_modules() if n.endswith("_proj")]
    left: list[int] = []
    prepare: Any = Mxfp4Module.prepare

    def noted(self: Mxfp4Module, *args: Any, **kwargs: Any) -> Any:
        left.append(sum(weight() is not None for weight in before))
        return prepare(self, *args, **kwargs)

    monkeypatch.setattr(Mxfp4Module, "prepare", noted)
    quantize_(model)
    assert left == list(range(8, 0, -1))


def test_tied_weights_stay() -> None:
    model = Model(Block())
    model.lm_head.weight = model.embed_tokens.weight
    done = quantize_(model, Mxfp4Config(keep_defaults=False))
    assert type(model.lm_head) is nn.Linear
    assert "shares its weight" in done.plan.reasons["lm_head"]


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        (Model(Block(), Block(hidden=80)), {"layers.1.down_proj"}),
        (Model(Block(hidden=80), Block(hidden=80)), {"layers.0.down_proj", "layers.1.down_proj"}),
        (Model(Block(64, 80), Block(), Block(64, 80)), {"layers.0.down_proj", "layers.2.down_proj"}),
    ],
)
def test_one_pattern_covers_what_is_refused_and_works_as_printed(model: Model, kept: set[str]) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ShapeError, match="k = 80") as caught:
        quantize_(model)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    patterns = printed_ignore(caught.value)
    assert len(patterns) == 1
    done = quantize_(model, Mxfp4Config(ignore=patterns))
    linears = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert linears == kept | {"lm_head"}
    assert not done.refused


def test_parts_of_one_kernel_are_kept_together() -> None:
    class Odd(nn.Linear):
        def __init__(self, k: int, n: int) -> None:
            super().__init__(k, n)
            self.weight = nn.Parameter(torch.zeros(n, k, dtype=torch.int8), requires_grad=False)

    model = Model(Block(), Block())
    model.layers[1].q_proj = Odd(64, 64)
    with pytest.raises(ConfigError, match=r"Odd has a weight torch\.int8") as caught:
        quantize_(model)
    (pattern,) = printed_ignore(caught.value)
    quantize_(model, Mxfp4Config(ignore=[pattern]))
    assert type(model.layers[1].k_proj) is nn.Linear
    assert isinstance(model.layers[0].q_proj, Mxfp4Linear)


@pytest.mark.parametrize("config", [Mxfp4Config(), Mxfp4Config(refused="keep")])
def test_keeping_what_is_refused_says_so(config: Mxfp4Config, caplog: pytest.LogCaptureFixture) -> None:
    model = Model(Block(), Block(hidden=80))
    with caplog.at_level(logging.WARNING, "mxfp4_core.modules"):
        done = quantize_(model, config, refused="keep")
    assert set(done.refused) == {"layers.1.down_proj"}
    assert any(
        "layers.1.down_proj stays in high precision" in record.getMessage() for record in caplog.records
    )
    assert "k = 80" in str(done)
    assert type(model.layers[1].down_proj) is nn.Linear and isinstance(model.layers[1].up_proj, Mxfp4Linear)


def test_a_backend_that_takes_nothing() -> None:
    model = Model(Block())
    with pytest.raises(BackendError, match="not installed") as caught:
        quantize_(model, Mxfp4Config(backend="rocm"))
    assert "ignore" not in caught.value.fix
    with pytest.raises(ConfigError, match="nothing is left"):
        quantize_(model, Mxfp4Config(backend="rocm", refused="keep"))
    assert type(model.layers[0].q_proj) is nn.Linear


def test_words_that_are_none() -> None:
    with pytest.raises(ConfigError, match="refused"):
        quantize_(Model(Block()), refused="maybe")


def test_nan_names_the_weight() -> None:
    model = Model(Block())
    model.layers[0].up_proj.weight.data[3, 40] = torch.nan
    with pytest.raises(NonFiniteError, match=r"nan at index \[3, 40\]") as caught:
        quantize_(model)
    assert caught.value.what.startswith("layers.0.up_proj.weight")


def test_k_in_the_middle_of_a_block_is_padded_on_request() -> None:
    model = Model(Block(hidden=80))
    weight = model.layers[0].down_proj.weight.detach().clone()
    quantize_(model, Mxfp4Config(tail="pad"))
    expected = quantize(weight, tail="pad")
    assert torch.equal(model.layers[0].down_proj.state_dict()["weight"], expected.codes)
