"""Names in parts: K-first tensors, ranges of numbers, renames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.naming.vocabulary import ranges, rename, transposed

ATTENTION = "model.layers.0.self_attn"
EXPERTS = "model.layers.0.mlp.experts"


@pytest.mark.parametrize(
    ("name", "model_type", "expected"),
    [
        (f"{EXPERTS}.gate_up_proj", "gpt_oss", True),
        (f"{EXPERTS}.down_proj", "gpt_oss", True),
        (EXPERTS, "gpt_oss", True),
        (f"{EXPERTS}.gate_up_proj_bias", "gpt_oss", False),
        (f"{ATTENTION}.q_proj.weight", "gpt_oss", False),
        (f"{EXPERTS}.gate_up_proj", "qwen3_moe", False),
        (f"{EXPERTS}.3.gate_proj.weight", "llama4", False),
        ("transformer.h.0.attn.c_attn.weight", "gpt2", True),
        ("lm_head.weight", "gpt2", False),
    ],
)
def test_k_first_tensors_are_known(name: str, model_type: str, expected: bool) -> None:
    assert transposed(name, model_type) is expected


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_every_number_once(numbers: set[int]) -> None:
    found: list[int] = []
    for run in filter(None, ranges(numbers).split(", ")):
        low, _, high = run.partition("-")
        found += range(int(low), int(high or low) + 1)
    assert found == sorted(numbers)


@pytest.mark.parametrize(
    ("name", "source", "target", "expected"),
    [
        ("a.b.c", "b", "x.y", "a.x.y.c"),
        ("a.bb.c", "b", "x", "a.bb.c"),
        ("a.b.a", "^a", "x", "x.b.a"),
        ("b.a", "^a", "x", "b.a"),
        ("a.b", "^", "model", "model.a.b"),
        ("model.a.b", "^model", "", "a.b"),
    ],
)
def test_renames_replace_whole_components(name: str, source: str, target: str, expected: str) -> None:
    assert rename(name, source, target) == expected
