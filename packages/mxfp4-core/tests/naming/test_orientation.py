"""Which axis of stacked experts is K."""

import pytest

from mxfp4_core.errors import DialectError
from mxfp4_core.naming.orientation import k_first

VL = {"model_type": "qwen3_vl_moe", "text_config": {"model_type": "qwen3_vl_moe_text", "hidden_size": 64}}
GATE_UP, DOWN = (f"model.layers.0.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj"))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (GATE_UP, (8, 64, 96), True),  # as released
        (GATE_UP, (8, 96, 64), False),  # as transformers saves it again
        (DOWN, (8, 48, 64), True),
        (DOWN, (8, 64, 48), False),
        ("model.layers.0.self_attn.q_proj.weight", (64, 64), False),
        ("model.layers.0.mlp.experts.3.down_proj.weight", (64, 48), False),
    ],
)
def test_sizes_tell_the_order(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert k_first(name, shape, VL) is expected


@pytest.mark.parametrize("shape", [(8, 64, 64), (8, 32, 96)])
def test_sizes_that_do_not_tell_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DialectError, match="hidden_size 64"):
        k_first(GATE_UP, shape, VL)


def test_gpt_oss_is_k_first_whatever_the_sizes() -> None:
    assert k_first(GATE_UP, (8, 64, 64), {"model_type": "gpt_oss", "hidden_size": 64})


def test_other_models_are_not() -> None:
    assert not k_first(GATE_UP, (8, 64, 96), {"model_type": "qwen3_moe", "hidden_size": 64})
    assert not k_first(GATE_UP, (8, 64, 96), {})
