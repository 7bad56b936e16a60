"""Patterns across prefixes and draft layers, and patterns that do nothing."""

from __future__ import annotations

import pytest

from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import PatternError
from mxfp4_core.naming.resolver import Decision, Resolver

ATTENTION = "model.layers.0.self_attn"
EXPERTS = "model.layers.0.mlp.experts"


def decide(name: str, shape: tuple[int, ...] | None = None, **config: object) -> Decision:
    return Resolver(Mxfp4Config.from_dict(config)).decide(name, shape)


class TestPrefixes:
    SPELLINGS = ("model.layers.3.mlp.down_proj", "model.language_model.layers.3.mlp.down_proj",
                 "language_model.model.layers.3.mlp.down_proj")  # fmt: skip

    @pytest.mark.parametrize("pattern", SPELLINGS)
    @pytest.mark.parametrize("name", SPELLINGS)
    def test_the_place_of_the_language_model_does_not_matter(self, pattern: str, name: str) -> None:
        decision = decide(name, ignore=[f"={pattern}"])
        assert not decision.quantize and decision.matched == pattern

    def test_a_pattern_for_the_tower_reaches_only_the_tower(self) -> None:
        for pattern in ("language_model", "re:.*language_model.*"):
            assert not decide("model.language_model.layers.3.mlp.down_proj", ignore=[pattern]).quantize
            assert decide("model.layers.3.mlp.down_proj", ignore=[pattern]).quantize
            assert decide("model.visual.blocks.3.mlp.fc1", ignore=[pattern]).quantize

    def test_the_head_of_a_language_model_is_the_head(self) -> None:
        assert decide("language_model.lm_head", ignore=["=lm_head"]).pattern == "=lm_head"
        assert decide("lm_head", ignore=["=language_model.lm_head"]).pattern == "=language_model.lm_head"

    def test_renamed_modules_answer_to_both_names(self) -> None:
        renames = [("mlp.experts", "block_sparse_moe.experts")]
        resolver = Resolver(
            Mxfp4Config(ignore=["layers.0.block_sparse_moe", "layers.1.mlp"]), renames=renames
        )
        for layer in (0, 1):
            decision = resolver.decide(f"model.layers.{layer}.mlp.experts.gate_up_proj", (8, 64, 64))
            assert not decision.quantize
            assert decision.name == f"model.layers.{layer}.block_sparse_moe.experts.gate_up_proj"
        assert resolver.decide("model.layers.2.mlp.experts").quantize


class TestDraftLayers:
    def test_layers_after_the_last_are_draft_layers(self) -> None:
        resolver = Resolver.for_model(Mxfp4Config(), {"num_hidden_layers": 61})
        assert resolver.decide("model.layers.60.mlp.down_proj").quantize
        assert "comes after the 61 layers" in resolver.decide("model.layers.61.mlp.down_proj").reason

    def test_the_depth_of_the_text_model_does_not_count_in_the_vision_tower(self) -> None:
        resolver = Resolver.for_model(
            Mxfp4Config(), {"text_config": {"num_hidden_layers": 2}, "num_hidden_layers": 9}
        )
        assert not resolver.decide("model.language_model.layers.2.mlp.down_proj").quantize
        assert resolver.decide("model.vision_tower.layers.2.mlp.down_proj").quantize

    @pytest.mark.parametrize("depth", [None, "61", True, [61], -1])
    def test_an_unknown_depth_keeps_nothing(self, depth: object) -> None:
        resolver = Resolver.for_model(Mxfp4Config(), {"num_hidden_layers": depth, "num_experts": depth})
        assert resolver.decide("model.layers.61.mlp.down_proj").quantize


class TestPatternsThatDoNothing:
    NAMES = tuple(
        (f"model.layers.{layer}.{part}.weight", (64, 64))
        for layer in range(2)
        for part in ("mlp.gate", "mlp.up_proj", "mlp.gate_proj", "self_attn.o_proj")
    )

    def refuse(self, match: str, **config: object) -> PatternError:
        resolver = Resolver(Mxfp4Config.from_dict(config))
        with pytest.raises(PatternError, match=match) as caught:
            resolver.decide_all(self.NAMES)
        return caught.value

    @pytest.mark.parametrize("key", ["ignore", "targets"])
    def test_a_pattern_without_a_match_lists_near_misses(self, key: str) -> None:
        error = self.refuse("1 of 2 name patterns match nothing", **{key: ["mlp.up_prj", "o_proj"]})
        assert "'mlp.up_prj'" in error.seen and "'o_proj'" not in error.seen
        assert "'mlp.up_proj'" in error.fix

    def test_an_override_without_a_match_is_refused(self) -> None:
        error = self.refuse("match nothing", overrides=[{"pattern": "self_atn", "rule": "floor"}])
        assert "self_attn" in error.fix

    def test_a_target_or_override_that_only_hits_what_is_kept_is_refused(self) -> None:
        for config in (
            {"targets": ["mlp.gate", "self_attn"]},
            {"overrides": [{"pattern": "mlp.gate", "rule": "floor"}]},
            {"overrides": [{"pattern": "o_proj", "rule": "floor"}], "ignore": ["self_attn"]},
        ):
            assert "keep = false" in self.refuse("all that it matches is kept", **config).fix

    def test_what_no_override_can_force_is_said_with_the_reason(self) -> None:
        resolver = Resolver(Mxfp4Config.from_dict({"overrides": [{"pattern": "norm", "keep": False}]}))
        with pytest.raises(PatternError, match="all that it matches is kept") as found:
            resolver.decide_all([("model.norm.weight", (64,))])
        error = found.value
        assert error.seen == "'norm' (model.norm: a vector has no rows to quantise)"
        assert error.fix == "drop it: even an override with keep = false makes no MXFP4 of this"

    def test_two_targets_for_the_same_name_both_did_something(self) -> None:
        config = Mxfp4Config(targets=["mlp", "up_proj", "gate_proj"], overrides=[])
        assert sum(found.quantize for found in Resolver(config).decide_all(self.NAMES)) == 4

    def test_a_pattern_that_hits_only_a_vector_did_something(self) -> None:
        resolver = Resolver(Mxfp4Config(ignore=["input_layernorm"]))
        resolver.decide_all([("model.layers.0.input_layernorm.weight", (64,))])

    def test_what_has_matched_is_remembered_across_calls(self) -> None:
        resolver = Resolver(Mxfp4Config(ignore=["mlp", "self_attn"]))
        resolver.decide("a.mlp.up_proj")
        assert resolver.unmatched() == ["self_attn"]
        resolver.decide("a.self_attn.qkv_proj")
        resolver.check_patterns()
