"""What the table of families keeps by default: told with its source, below what anybody says, and switched off."""

from typing import Any

import pytest

from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import PatternError
from mxfp4_core.naming import Decision, Resolver
from mxfp4_core.naming.by_family import advice
from mxfp4_core.naming.families import FAMILIES, TOWERS, rows

QWEN: dict[str, Any] = {
    "model_type": "qwen3_5_moe",
    "text_config": {"model_type": "qwen3_5_moe_text", "num_hidden_layers": 40, "num_experts": 8},
    "vision_config": {"depth": 2},
}
DEEPSEEK: dict[str, Any] = {"model_type": "deepseek_v3", "num_hidden_layers": 61, "n_routed_experts": 8}
LAYER = "model.layers.4"
ATTENTION = f"{LAYER}.self_attn.o_proj.weight"


def decision(model: dict[str, Any], name: str, **settings: Any) -> Decision:
    config = Mxfp4Config.from_dict(settings)
    return Resolver.for_model(config, model).decide(name, (64, 64))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (DEEPSEEK, ATTENTION),
        (DEEPSEEK, f"{LAYER}.self_attn.fused_qkv_a_proj_with_mqa"),
        ({**DEEPSEEK, "model_type": "deepseek_v32"}, f"{LAYER}.self_attn.kv_b_proj.weight"),
        ({**DEEPSEEK, "model_type": "deepseek_v4"}, "layers.4.attn.wq_a.weight"),  # in V4's own words
        # Kimi-VL and Kimi-K2.5 have this language model; and by the whole where only that says its type.
        ({"model_type": "kimi_vl", "text_config": DEEPSEEK}, f"language_model.{ATTENTION}"),
        ({"model_type": "deepseek_v3", "text_config": {"model_type": "other"}}, ATTENTION),
        (QWEN, "model.language_model.layers.3.self_attn.q_proj.weight"),
        (QWEN, "model.language_model.layers.3.self_attn.qkv_proj"),
        (QWEN, "language_model.model.layers.3.self_attn.o_proj"),
        (QWEN, "model.language_model.layers.0.linear_attn.in_proj_qkv.weight"),
        (QWEN, "model.language_model.layers.0.linear_attn.in_proj_qkvz"),
        (QWEN, "model.language_model.layers.0.linear_attn.in_proj_ba"),
        (QWEN, "model.language_model.layers.0.linear_attn.out_proj.weight"),
        (QWEN, "model.language_model.layers.0.mlp.shared_expert.gate_up_proj"),
        ({**QWEN["text_config"]}, "model.layers.0.mlp.shared_expert.down_proj.weight"),  # its text alone
    ],
)
def test_what_a_row_keeps(model: dict[str, Any], name: str) -> None:
    found = decision(model, name)
    assert not found.quantize and found.pattern is None
    assert (
        "SGLang 0.5" in found.row and found.row in found.reason and found.reason.endswith("kept by default")
    )
    assert decision(model, name, family_defaults=False).quantize


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (DEEPSEEK, f"{LAYER}.mlp.experts.3.up_proj.weight"),
        (DEEPSEEK, f"{LAYER}.mlp.shared_experts.up_proj.weight"),
        (DEEPSEEK, "model.layers.0.mlp.gate_proj.weight"),
        (QWEN, "model.language_model.layers.0.mlp.experts"),
        (
            {"model_type": "qwen3_5"},
            "model.layers.3.self_attn.q_proj.weight",
        ),  # SGLang keeps nothing of the dense
        ({"model_type": "llama"}, ATTENTION),
        ({}, ATTENTION),
    ],
)
def test_what_no_row_keeps(model: dict[str, Any], name: str) -> None:
    config = Mxfp4Config()
    found = Resolver.for_model(config, model).decide(name)
    assert found.quantize and not found.row


def test_towers_are_a_row_of_their_own() -> None:
    found = decision(QWEN, "model.visual.blocks.0.mlp.linear_fc1.weight")
    assert (found.quantize, found.row) == (False, TOWERS)
    assert (
        found.reason
        == "inside 'visual', a vision tower, which SGLang 0.5.23 leaves as it is, kept by default"
    )
    assert decision({"model_type": "llama"}, "visual.blocks.0.mlp.linear_fc1").quantize


@pytest.mark.parametrize(
    "settings",
    [
        {"family_defaults": False},
        {"keep_defaults": False},
        {"targets": ["self_attn"]},
        {"targets": ["layers"]},
        {"overrides": [{"pattern": "self_attn", "keep": False}]},
        {"overrides": [{"pattern": "self_attn", "keep": False, "format": "mxfp8"}]},
    ],
    ids=["switched off", "no defaults", "a target", "a wider target", "forced", "forced to another format"],
)
def test_what_somebody_says_outranks_a_row(settings: dict[str, Any]) -> None:
    assert decision(DEEPSEEK, ATTENTION, **settings).quantize


def test_ignore_still_says_by_what() -> None:
    found = decision(DEEPSEEK, ATTENTION, ignore=["o_proj"])
    assert (found.pattern, found.row) == ("o_proj", "")


def test_an_override_that_says_how_is_refused_where_a_row_keeps_all_of_it() -> None:
    """It is never dropped in silence: the error names what makes it count."""
    config = Mxfp4Config.from_dict({"overrides": [{"pattern": "self_attn", "format": "mxfp8"}]})
    names = [(ATTENTION, (64, 64)), (f"{LAYER}.mlp.down_proj.weight", (64, 64))]
    with pytest.raises(PatternError, match="keep = false"):
        Resolver.for_model(config, DEEPSEEK).decide_all(names)


def test_what_is_stored_is_not_decided_again() -> None:
    config = Mxfp4Config.from_dict({"overrides": [{"pattern": "self_attn", "activation": "mxfp4"}]})
    found = Resolver.for_model(config, DEEPSEEK, stored=True).decide(ATTENTION, (64, 64))
    assert found.quantize and found.activation == "mxfp4"


def test_a_row_holds_for_every_layer() -> None:
    """Names that differ in numbers alone are decided once."""
    names = [
        (f"model.layers.{number}.{part}.weight", (64, 64))
        for number in range(20)
        for part in ("self_attn.o_proj", "mlp.shared_experts.down_proj")
    ]
    found = Resolver.for_model(Mxfp4Config(), DEEPSEEK).decide_all(names)
    assert [bool(each.row) for each in found] == [True, False] * 20


def test_the_settings_that_are_stored_say_so_only_where_it_is_off() -> None:
    plain, off = Mxfp4Config(), Mxfp4Config(family_defaults=False)
    assert "family_defaults" not in plain.to_dict() and "family_defaults" not in plain.described()
    assert off.described()["family_defaults"] is False
    assert Mxfp4Config.from_dict(off.to_dict()) == off and off.fingerprint() != plain.fingerprint()


def test_rows_switched_off_are_advice_in_all_vocabularies() -> None:
    names = [
        "model.layers.3.self_attn.q_proj",
        "model.layers.3.self_attn.k_proj",
        "model.layers.3.mlp.up_proj",
    ]
    assert advice("qwen3_5_moe_text", names) == {next(rows("qwen3_5_moe")).source: ("qkv_proj",)}


def test_rows_keep_by_patterns_without_numbers() -> None:
    """A decision about one layer holds for all, and a number of one size of a family is no rule for the others."""
    texts = [text for row in FAMILIES for text in row.kept]
    assert texts and not any(letter.isdigit() for text in texts for letter in text)
