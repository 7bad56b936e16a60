from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.backend.device import Device
from mxfp4_core.backend.problem import GPT_OSS_SWIGLU, Gate, Problem
from mxfp4_core.errors import ConfigError, ShapeError

CPU = Device("cpu", "x86_64")


def test_features_of_a_plain_linear() -> None:
    assert Problem(op="linear", n=1, k=1, device=CPU).features == {"linear", "dtype:bfloat16"}


def test_features_of_gpt_oss_under_expert_parallelism() -> None:
    problem = Problem(
        op="moe",
        n=2880,
        k=2880,
        experts=8,
        total_experts=32,
        top_k=4,
        gate=GPT_OSS_SWIGLU,
        bias=True,
        device=CPU,
    )
    words = {"moe", "dtype:bfloat16", "bias", "gate:clamped", "rows:interleaved", "expert-map"}
    assert problem.features == words


def test_requirements_are_features() -> None:
    problem = Problem(
        op="linear", n=1, k=1, requires=frozenset({"two scale levels"}), activation="fp8", device=CPU
    )
    assert {"two scale levels", "activation:fp8"} <= problem.features


def test_silu_is_silu_in_any_row_order() -> None:
    assert Gate(interleaved=True).is_silu
    assert not Gate(limit=10.0).is_silu
    assert not Gate(function="gelu").is_silu and not Gate(gated=False).is_silu


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (Gate(), ["gate:silu"]),
        (GPT_OSS_SWIGLU, ["gate:clamped", "rows:interleaved"]),
        (Gate(function="gelu"), ["gate:gelu"]),
        (Gate(limit=7.0, function="gelu_tanh"), ["gate:gelu_tanh", "gate:clamped"]),
        (Gate(function="relu2", gated=False), ["gate:relu2", "gate:none"]),
        (Gate(alpha=1.702, gated=False), ["gate:clamped", "gate:none"]),
    ],
    ids=str,
)
def test_the_words_of_an_activation(gate: Gate, words: list[str]) -> None:
    problem = Problem(op="moe", n=1, k=1, experts=1, top_k=1, gate=gate, device=CPU)
    assert problem.features == {"moe", "dtype:bfloat16"} | set(words)
    assert Gate.of(*gate.arguments) == gate


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"function": "swish"}, "function is one of silu, gelu"),
        ({"function": "gelu", "alpha": 1.5}, "inside the sigmoid of silu"),
        ({"gated": False, "limit": 7.0}, "those of a gate"),
        ({"gated": False, "interleaved": True}, "those of a gate"),
        ({"gated": False, "up_offset": 1.0}, "those of a gate"),
    ],
)
def test_an_activation_that_contradicts_itself(values: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        Gate(**values)


def test_all_experts_are_here_unless_said() -> None:
    assert Problem(op="moe", n=1, k=1, experts=4, top_k=2, device=CPU).total_experts == 4


@pytest.mark.parametrize(
    "sizes",
    [
        {"op": "linear", "n": 0, "k": 32},
        {"op": "linear", "n": 32, "k": -1},
        {"op": "linear", "n": 32, "k": 32, "m": -1},
        {"op": "linear", "n": 32, "k": 32, "experts": 2},
        {"op": "quantize", "n": 32, "k": 32, "top_k": 2},
        {"op": "moe", "n": 32, "k": 32},
        {"op": "moe", "n": 32, "k": 32, "experts": 4, "top_k": 5},
        {"op": "moe", "n": 32, "k": 32, "experts": 4, "total_experts": 2, "top_k": 1},
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ShapeError):
        Problem(device=CPU, **sizes)


def test_unknown_ops_are_refused() -> None:
    with pytest.raises(ConfigError):
        Problem(op="conv", n=1, k=1, device=CPU)  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"op": "linaer"}, "did you mean 'linear'?"),
        ({"activation": "banana"}, "use one of these words"),
        ({"activation": "mxfp"}, "did you mean 'mxfp8'?"),
        ({"dtype": "bfloat61"}, "did you mean 'bfloat16'?"),
        ({"dtype": "int8"}, "use one of these words"),
        ({"tokens": "mask"}, "did you mean 'masked'?"),
        ({"format": "mxpf4"}, "did you mean 'mxfp4'?"),
    ],
    ids=str,
)
def test_words_that_nobody_knows_are_refused(change: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Problem(**{"op": "linear", "n": 1, "k": 1, "device": CPU} | change)
    assert caught.value.fix == fix and repr(next(iter(change.values()))) in caught.value.seen


def test_shared_experts_and_sorted_tokens_have_words() -> None:
    sizes: dict[str, Any] = {"op": "moe", "n": 1, "k": 1, "experts": 4, "top_k": 2, "device": CPU}
    shared = Problem(**sizes, shared_experts=1)
    assert "shared-experts" in shared.features and shared.stacked == 5
    assert "tokens:masked" in Problem(**sizes, tokens="masked").features
    with pytest.raises(ShapeError):
        Problem(**sizes, shared_experts=1, tokens="batched")
    with pytest.raises(ShapeError):
        Problem(op="linear", n=1, k=1, shared_experts=1, device=CPU)
    with pytest.raises(ConfigError):
        Problem(op="linear", n=1, k=1, tokens="masked", device=CPU)


def test_auto_asks_for_no_word() -> None:
    plain = Problem(op="linear", n=1, k=1, device=CPU)
    assert replace(plain, activation="auto").features == plain.features
    assert "activation=auto" in str(replace(plain, activation="auto"))


def test_options_are_kept_hashable() -> None:
    problem = Problem(op="linear", n=1, k=1, device=CPU, options={"tiles": [64, 128], "fast": True})
    same = Problem(op="linear", n=1, k=1, device=CPU, options={"fast": True, "tiles": (64, 128)})
    assert problem == same and hash(problem) == hash(same)
    assert pickle.loads(pickle.dumps(problem)) == problem
    assert problem.options["tiles"] == (64, 128) and "fast=True" in str(problem)


@given(st.integers(1, 64), st.integers(1, 64), st.booleans())
def test_the_text_names_every_size(n: int, k: int, bias: bool) -> None:
    text = str(Problem(op="linear", n=n, k=k, bias=bias, device=CPU))
    assert f"n={n} k={k}" in text and ("bias" in text) == bias
