"""Sharding by name: what one rank holds, and what cannot be cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.errors import ConfigError, ShapeError
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.parallel.shards import Parallel, Shard, shard_of, split_of

LAYER = "model.layers.0"
FACTS = ModelFacts("qwen3_moe", heads=8, kv_heads=2, experts=8, top_k=2)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        (f"{LAYER}.self_attn.q_proj.weight", "columns"),
        (f"{LAYER}.mlp.gate_up_proj", "columns"),
        (f"{LAYER}.self_attn.o_proj.weight", "rows"),
        (f"{LAYER}.mlp.down_proj.weight", "rows"),
        ("blocks.0.attn1.to_out.0.weight", "rows"),
        ("blocks.0.ffn.net.0.proj.weight", "columns"),
        ("blocks.0.ffn.net.2.weight", "rows"),
        ("visual.blocks.0.attn.qkv.weight", "columns"),
        ("visual.blocks.0.attn.proj.weight", "rows"),
        (f"{LAYER}.self_attn.q_a_proj.weight", "none"),
        ("lm_head.weight", "none"),
    ],
)
def test_names_tell_the_split(name: str, split: str) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("name", "shape", "parallel", "shard"),
    [
        (f"{LAYER}.mlp.up_proj", (256, 128), Parallel(4), Shard("columns", 64, 128)),
        (f"{LAYER}.mlp.down_proj", (128, 256), Parallel(4), Shard("rows", 128, 64)),
        (f"{LAYER}.mlp.gate_up_proj", (512, 128), Parallel(4), Shard("columns", 128, 128)),
        (f"{LAYER}.self_attn.q_proj", (128, 128), Parallel(4), Shard("columns", 32, 128)),
        (f"{LAYER}.self_attn.k_proj", (32, 128), Parallel(2), Shard("columns", 16, 128)),
        (f"{LAYER}.self_attn.k_proj", (32, 128), Parallel(8), Shard("columns", 16, 128)),
        (f"{LAYER}.self_attn.q_a_proj", (100, 128), Parallel(8), Shard("none", 100, 128)),
        (f"{LAYER}.mlp.experts.gate_up_proj", (8, 512, 128), Parallel(4), Shard("columns", 128, 128, 8)),
        (f"{LAYER}.mlp.experts.down_proj", (8, 128, 256), Parallel(4), Shard("rows", 128, 64, 8)),
        (f"{LAYER}.mlp.experts.gate_up_proj", (8, 512, 128), Parallel(4, 4), Shard("none", 512, 128, 2)),
        (f"{LAYER}.mlp.experts.gate_up_proj", (8, 512, 128), Parallel(4, 2), Shard("columns", 256, 128, 4)),
        (f"{LAYER}.mlp.experts.3.up_proj", (256, 128), Parallel(1, 4), Shard("none", 256, 128, 0, 4)),
        (f"{LAYER}.mlp.experts.3.w2", (128, 256), Parallel(8, 4), Shard("rows", 128, 128, 0, 4)),
    ],
)
def test_one_rank_holds_its_part(name: str, shape: tuple[int, ...], parallel: Parallel, shard: Shard) -> None:
    assert shard_of(name, shape, parallel, FACTS) == shard


@pytest.mark.parametrize(
    ("name", "shape", "parallel", "words"),
    [
        (f"{LAYER}.mlp.experts.gate_up_proj", (8, 511, 128), Parallel(1), "N = 511"),
        (f"{LAYER}.mlp.down_proj", (128, 192), Parallel(4), "here it would be 48"),
        (f"{LAYER}.mlp.up_proj", (130, 128), Parallel(4), "equal parts"),
        (f"{LAYER}.mlp.gate_up_proj", (260, 128), Parallel(4), r"\(part 0\)"),
        (f"{LAYER}.self_attn.q_proj", (128, 128), Parallel(3), "query heads = 8 over 3"),
        (f"{LAYER}.self_attn.k_proj", (32, 128), Parallel(16), "query heads = 8 over 16"),
        (f"{LAYER}.mlp.experts.down_proj", (8, 128, 192), Parallel(4), "TP or EP size 2, 3 or 6"),
        (f"{LAYER}.mlp.experts.down_proj", (8, 128, 192), Parallel(16, 16), "experts = 8 over 16"),
        (f"{LAYER}.mlp.experts.3.down_proj", (128, 192), Parallel(1, 3), "experts = 8 over 3"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    name: str, shape: tuple[int, ...], parallel: Parallel, words: str
) -> None:
    with pytest.raises(ShapeError, match=words):
        shard_of(name, shape, parallel, FACTS)


def test_a_padded_tail_is_divided_evenly_and_padded_by_each_rank() -> None:
    assert shard_of(f"{LAYER}.mlp.down_proj", (128, 192), Parallel(4), FACTS, tail="pad").k == 48
    with pytest.raises(ShapeError, match="equal parts"):
        shard_of(f"{LAYER}.mlp.down_proj", (128, 192), Parallel(5), FACTS, tail="pad")


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 64), st.integers(1, 8))
def test_the_ranks_together_hold_everything(tp: int, ep: int, n: int, blocks: int) -> None:
    """No rank holds less than its share, whichever way the weight is cut."""
    if tp % ep and ep % tp:
        with pytest.raises(ConfigError, match="do not go together"):
            Parallel(tp, ep)
        return
    parallel = Parallel(tp, ep)
    for name, shape in (("mlp.up_proj", (n, 32 * blocks)), ("mlp.experts.down_proj", (8, n, 32 * blocks))):
        try:
            shard = shard_of(f"{LAYER}.{name}", shape, parallel, FACTS)
        except ShapeError:
            continue
        whole = 1
        for size in shape:
            whole *= size
        ways = parallel.expert_tp * ep if "experts" in name else tp
        assert shard.values * ways == whole


def test_other_attention_heads_than_those_of_the_language_model_are_cut_by_rows_only() -> None:
    name = "vision_tower.layers.0.self_attn.q_proj"
    assert shard_of(name, (48, 64), Parallel(3), FACTS) == Shard("columns", 16, 64)


def test_the_facts_come_from_the_section_of_the_language_model() -> None:
    config = {
        "model_type": "outer",
        "text_config": {
            "model_type": "inner",
            "num_attention_heads": 8,
            "num_local_experts": 4,
            "experts_per_token": 2,
        },
    }
    assert ModelFacts.read(config) == ModelFacts("inner", 8, 8, 4, 2)
    assert ModelFacts.read({"num_experts": "many", "num_attention_heads": True}) == ModelFacts()
