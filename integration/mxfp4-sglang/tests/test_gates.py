"""SGLang's words for the activation of experts, in the core's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mxfp4_core.backend import GPT_OSS_SWIGLU, SILU, Gate
from mxfp4_core.errors import ConfigError
from mxfp4_sglang.gates import gate_of

PLAIN = {
    "activation": "silu",
    "is_gated": True,
    "apply_router_weight_on_input": False,
    "no_combine": False,
    "gemm1_alpha": None,
    "gemm1_clamp_limit": None,
    "swiglu_limit": None,
    "gate_up_interleaved": True,
}


@pytest.mark.parametrize(
    ("given", "gate"),
    [
        ({}, SILU),
        ({"swiglu_limit": 10.0}, Gate(limit=10.0)),
        ({"gemm1_alpha": 1.702, "gemm1_clamp_limit": 7.0}, GPT_OSS_SWIGLU),
        (
            {"gemm1_alpha": 1.702, "gemm1_clamp_limit": 7.0, "gate_up_interleaved": False},
            Gate(1.702, 7.0, 1.0, False),
        ),
        ({"gemm1_alpha": 1.5, "gemm1_beta": 0.0}, Gate(1.5, None, 0.0, True)),
        ({"activation": "gelu"}, Gate(function="gelu")),
        ({"activation": "gelu_tanh"}, Gate(function="gelu_tanh")),
        ({"is_gated": False}, Gate(gated=False)),
        ({"activation": "gelu", "is_gated": False}, Gate(function="gelu", gated=False)),
        ({"activation": "relu2", "is_gated": False}, Gate(function="relu2", gated=False)),
    ],
)
def test_gates(given: dict[str, Any], gate: Gate) -> None:
    assert gate_of(SimpleNamespace(**{**PLAIN, **given}), "experts") == gate


@pytest.mark.parametrize(
    "given",
    [
        {"activation": "situ"},
        {"activation": "relu2"},
        {"activation": "gelu_tanh", "is_gated": False},
        {"activation": "gelu", "gemm1_clamp_limit": 7.0},
        {"activation": "gelu", "swiglu_limit": 7.0},
        {"activation": "relu2", "is_gated": False, "gemm1_alpha": 1.702},
        {"apply_router_weight_on_input": True},
    ],
)
def test_what_is_no_gate_is_refused_by_the_name_of_the_layer(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model.layers.3.mlp.experts") as caught:
        gate_of(SimpleNamespace(**{**PLAIN, **given}), "model.layers.3.mlp.experts")
    assert "ignore=['model.layers.3.mlp.experts']" in caught.value.fix
