"""The table of families, and the one reader of config.json."""

import pytest

from mxfp4_core.naming import FAMILIES, ModelFacts
from mxfp4_core.naming.by_family import advice
from mxfp4_core.naming.families import gate_of, rows


def test_every_row_says_where_it_comes_from_and_something() -> None:
    for row in FAMILIES:
        assert row.source and row.types
        assert (
            row.gate
            or row.k_first_experts
            or row.k_first_linears
            or row.kept
            or row.advised
            or row.ends
            or row.rewritten
            or row.second
        )


def test_no_model_type_has_two_gates() -> None:
    types = {kind for row in FAMILIES for kind in row.types}
    assert all(sum(row.gate is not None for row in rows(kind)) < 2 for kind in types)


def test_gates_of_families() -> None:
    oss, v4 = gate_of("gpt_oss"), gate_of("deepseek_v4")
    assert oss and (oss.alpha, oss.limit, oss.up_offset, oss.interleaved) == (1.702, 7.0, 1.0, True)
    assert v4 and (v4.alpha, v4.limit, v4.interleaved) == (1.0, 10.0, False)
    gemma = gate_of("gemma4_text")
    assert gemma is not None and gemma.function == "gelu_tanh" and gemma.gated
    assert gate_of("llama") is None


def test_advice_names_only_what_is_there() -> None:
    found = advice("deepseek_v3", ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.up_proj"])
    assert list(found.values()) == [("self_attn",)]
    assert advice("llama", ["model.layers.0.self_attn.o_proj"]) == {}


@pytest.mark.parametrize("section", ["text_config", "llm_config", "language_config"])
def test_facts_are_read_from_the_section_of_the_language_model(section: str) -> None:
    text = {"model_type": "toy_text", "num_hidden_layers": 3, "hidden_size": 64, "n_routed_experts": 8}
    facts = ModelFacts.read({"model_type": "toy", section: text, "num_hidden_layers": 27})
    assert (facts.model_type, facts.layers, facts.hidden, facts.experts) == ("toy_text", 3, 64, 8)
    text.pop("model_type")
    assert ModelFacts.read({"model_type": "toy", section: text}).model_type == "toy"


@pytest.mark.parametrize("limit", [None, "7", 0, True, -1.0])
def test_a_limit_that_is_no_number_above_zero_is_none(limit: object) -> None:
    assert ModelFacts.read({"swiglu_limit": limit}).limit is None


def test_the_blocks_at_both_ends_are_advised_where_some_are_left_between() -> None:
    def modules(blocks: int) -> list[str]:
        return [f"transformer_blocks.{number}.attn.to_q" for number in range(blocks)]

    (found,) = advice("QwenImageTransformer2DModel", modules(60)).values()
    assert found == tuple(f"transformer_blocks.{number}" for number in (0, 1, 58, 59))
    assert advice("QwenImageTransformer2DModel", modules(4)) == {}
    (wan,) = advice("WanTransformer3DModel", [f"blocks.{number}.ffn.net.2" for number in range(40)]).values()
    assert wan == tuple(f"blocks.{number}" for number in (*range(10), *range(30, 40)))
