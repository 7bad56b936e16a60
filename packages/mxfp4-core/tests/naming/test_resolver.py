"""The resolver: precedence, fused modules, experts, activations."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import PatternError
from mxfp4_core.naming.resolver import Decision, Resolver

ATTENTION = "model.layers.0.self_attn"
EXPERTS = "model.layers.0.mlp.experts"


def decide(name: str, shape: tuple[int, ...] | None = None, **config: object) -> Decision:
    return Resolver(Mxfp4Config.from_dict(config)).decide(name, shape)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lm_head.weight", "an output head"),
        ("language_model.lm_head", "an output head"),
        ("model.layers.61.shared_head.head.weight", "an output head"),
        ("model.embed_tokens.weight", "an embedding"),
        ("transformer.wte.weight", "an embedding"),
        ("transformer.wpe.weight", "an embedding"),
        ("gpt_neox.embed_in.weight", "an embedding"),
        ("visual.patch_embed.proj.weight", "an embedding"),
        ("time_text_embed.timestep_embedder.linear_1.weight", "an embedding"),
        ("x_embedder.weight", "an embedding"),
        ("model.layers.3.mlp.gate.weight", "a router or gate"),
        ("model.layers.3.mlp.gate", "a router or gate"),
        ("model.layers.3.mlp.router.weight", "a router or gate"),
        ("model.layers.3.mlp.router.classifier.weight", "holds a router"),
        ("model.layers.3.mlp.gate.wg.weight", "a router"),
        ("model.layers.3.mlp.shared_expert_gate.weight", "a router or gate"),
        ("model.layers.3.input_layernorm.weight", "a normalisation"),
        ("transformer.h.0.ln_1.weight", "a normalisation"),
        ("transformer_blocks.0.norm1.linear.weight", "a normalisation"),
        ("mtp.layers.0.mlp.up_proj.weight", "draft"),
        ("mtp.fc.weight", "draft"),
        ("model.layers.0.conv1d.weight", "a convolution"),
        ("encoder.block.0.relative_attention_bias.weight", "an embedding"),
        ("model.embed_tokens", "an embedding"),
        ("model.layers.0.self_attn.q_proj.bias", "not the weight"),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", "not the weight"),
        ("model.layers.0.mamba.A_log", "not the weight"),
        ("model.layers.0.mlp.gate.e_score_correction_bias", "not the weight"),
    ],
)
def test_what_the_defaults_keep_says_why(name: str, words: str) -> None:
    decision = decide(name)
    assert not decision.quantize and words in decision.reason and decision.pattern is None


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.3.mlp.gate_proj.weight",
        "model.layers.3.mlp.gate_up_proj.weight",
        "model.layers.3.mlp.shared_expert.gate_proj.weight",
        "model.layers.3.mlp.experts.7.gate_proj.weight",
        "model.layers.3.mlp.experts.gate_up_proj",
        "model.layers.3.mlp.experts",
        "model.layers.3.conv.in_proj.weight",
        "model.layers.3.linear_attn.in_proj_z.weight",
        "visual.blocks.0.attn.qkv.weight",
        "single_transformer_blocks.0.proj_out.weight",
    ],
)
def test_what_the_defaults_quantise(name: str) -> None:
    decision = decide(name)
    assert decision.quantize and decision.profile == "even/even"


@pytest.mark.parametrize(
    ("name", "shape", "quantized"),
    [
        ("a.q_proj.weight", (64, 64), True),
        ("a.q_proj.weight", (64,), False),
        ("a.q_proj.weight", (), False),
        ("a.q_proj.weight", (0, 64), False),
        ("a.proj.weight", (64, 3, 14, 14), False),
        ("a.proj.weight", (64, 3, 4), False),
        ("a.experts.gate_up_proj", (8, 64, 64), True),
        ("a.experts.gate_up_proj", (8, 2, 64, 64), False),
        ("a.experts.3.gate_proj.weight", (8, 64, 64), False),
    ],
)
def test_the_shape_tells_what_no_linear_weight_is(name: str, shape: tuple[int, ...], quantized: bool) -> None:
    assert decide(name, shape).quantize is quantized


def test_the_canonical_name_is_that_of_the_tensor() -> None:
    assert decide("a.q_proj").name == decide("a.q_proj.weight").name == "a.q_proj.weight"
    assert decide(f"{EXPERTS}.gate_up_proj").name == f"{EXPERTS}.gate_up_proj"
    assert decide(f"{EXPERTS}.3.up_proj").name == f"{EXPERTS}.3.up_proj.weight"
    assert decide("a.q_proj.bias").name == "a.q_proj.bias"
    assert decide("a.norm.weight", (8,)).name == "a.norm.weight"


def test_ignore_says_which_pattern_and_how_it_matched() -> None:
    decision = decide(f"{ATTENTION}.qkv_proj", ignore=["self_attn"])
    assert (decision.quantize, decision.pattern, decision.matched) == (
        False,
        "self_attn",
        f"{ATTENTION}.q_proj",
    )
    assert decision.reason == "ignored by 'self_attn'"


class TestPrecedence:
    def test_ignore_beats_an_override_that_only_says_how(self) -> None:
        overrides = [{"pattern": "self_attn", "rule": "floor"}]
        assert not decide(f"{ATTENTION}.o_proj", ignore=["o_proj"], overrides=overrides).quantize
        assert decide(f"{ATTENTION}.q_proj", ignore=["o_proj"], overrides=overrides).profile == "floor/even"

    def test_ignore_against_keep_false_is_an_error(self) -> None:
        with pytest.raises(PatternError, match="two different instructions"):
            decide("lm_head", ignore=["lm_head.weight"], overrides=[{"pattern": "lm_head", "keep": False}])

    def test_keep_false_outranks_the_defaults_and_the_targets(self) -> None:
        decision = decide("lm_head", targets=["mlp"], overrides=[{"pattern": "lm_head", "keep": False}])
        assert decision.quantize and "outranks the defaults" in decision.reason

    def test_an_override_of_the_rule_does_not_outrank_the_defaults(self) -> None:
        assert not decide("model.layers.0.mlp.gate", overrides=[{"pattern": "mlp", "rule": "floor"}]).quantize

    def test_keep_true_keeps(self) -> None:
        decision = decide("a.q_proj", overrides=[{"pattern": "a", "keep": True}], targets=["q_proj"])
        assert not decision.quantize and decision.pattern == "a"

    def test_targets_limit_what_is_quantised(self) -> None:
        assert decide("a.mlp.up_proj", targets=["mlp"]).pattern == "mlp"
        assert decide("a.attn.q_proj", targets=["mlp"]).reason == "no target matches it"
        assert not decide("a.mlp.gate", targets=["mlp"]).quantize

    def test_without_defaults_everything_two_dimensional_is_quantised(self) -> None:
        assert decide("lm_head", keep_defaults=False).quantize
        assert not decide("model.norm.weight", (64,), keep_defaults=False).quantize

    def test_two_overrides_that_agree_are_one(self) -> None:
        overrides = [{"pattern": "q_proj", "rule": "floor"}, {"pattern": "a", "profile": "floor/even"}]
        assert decide("a.q_proj", overrides=overrides).profile == "floor/even"

    def test_two_overrides_that_differ_are_an_error(self) -> None:
        overrides = [{"pattern": "q_proj", "rule": "floor"}, {"pattern": "a", "rule": "ceil"}]
        with pytest.raises(PatternError, match="overrides 'q_proj' and 'a'"):
            decide("a.q_proj", overrides=overrides)


class TestFused:
    def test_the_fused_name_in_a_pattern_reaches_every_shard(self) -> None:
        for name in ("q_proj", "k_proj", "v_proj", "qkv_proj"):
            assert not decide(f"{ATTENTION}.{name}", ignore=["qkv_proj"]).quantize
        assert decide(f"{ATTENTION}.o_proj", ignore=["qkv_proj"]).quantize

    def test_all_shards_in_the_patterns_reach_the_fused_name(self) -> None:
        assert not decide(f"{ATTENTION}.qkv_proj", ignore=["q_proj", "k_proj", "v_proj"]).quantize

    @given(st.sets(st.sampled_from(["q_proj", "k_proj", "v_proj"]), min_size=1, max_size=2))
    def test_some_shards_split_the_fused_module(self, ignored: set[str]) -> None:
        with pytest.raises(PatternError, match="would be split") as caught:
            decide(f"{ATTENTION}.qkv_proj", ignore=sorted(ignored))
        for name in ("q_proj", "k_proj", "v_proj"):
            assert name in caught.value.seen

    @pytest.mark.parametrize("pattern", ["re:.*v_proj", "*v_proj"])
    def test_an_expression_for_v_does_not_reach_q_and_k_through_the_fused_name(self, pattern: str) -> None:
        assert decide(f"{ATTENTION}.q_proj", ignore=[pattern]).quantize
        assert not decide(f"{ATTENTION}.v_proj", ignore=[pattern]).quantize
        with pytest.raises(PatternError, match="q_proj, k_proj quantised; v_proj kept"):
            decide(f"{ATTENTION}.qkv_proj", ignore=[pattern])

    def test_an_expression_for_the_fused_name_reaches_every_shard(self) -> None:
        assert not decide(f"{ATTENTION}.v_proj", ignore=["re:.*qkv_proj"]).quantize

    def test_shards_with_different_rules_split_the_module_too(self) -> None:
        with pytest.raises(PatternError, match="quantised by floor/even"):
            decide(f"{ATTENTION}.qkv_proj", overrides=[{"pattern": "v_proj", "rule": "floor"}])

    def test_names_that_are_offered_apart_must_agree_as_well(self) -> None:
        resolver = Resolver(Mxfp4Config(ignore=["q_proj"]))
        names = [(f"{ATTENTION}.{shard}.weight", (64, 64)) for shard in ("q_proj", "k_proj", "v_proj")]
        with pytest.raises(PatternError, match=r"self_attn\.qkv_proj would be split"):
            resolver.decide_all(names)

    def test_an_engine_that_fuses_nothing_may_split(self) -> None:
        resolver = Resolver(Mxfp4Config(ignore=["q_proj"]), fused={})
        decisions = resolver.decide_all([(f"{ATTENTION}.{shard}", None) for shard in ("q_proj", "k_proj")])
        assert [decision.quantize for decision in decisions] == [False, True]

    def test_an_engine_may_bring_its_own_fused_modules(self) -> None:
        resolver = Resolver(Mxfp4Config(ignore=["w1", "w3"]), fused={"w13": ("w1", "w3")})
        assert not resolver.decide("layers.0.feed_forward.w13").quantize
        with pytest.raises(PatternError, match="would be split"):
            Resolver(Mxfp4Config(ignore=["w1"])).decide("layers.0.feed_forward.w13")


class TestExperts:
    def test_the_experts_of_a_layer_are_one(self) -> None:
        ignore = [f"{EXPERTS}.{index}" for index in range(4)]
        for name in (EXPERTS, f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.w13_weight", f"{EXPERTS}.w2_weight"):
            assert not decide(name, (4, 64, 64), ignore=ignore).quantize

    def test_one_expert_apart_is_named(self) -> None:
        with pytest.raises(PatternError) as caught:
            decide(f"{EXPERTS}.w13_weight", (8, 64, 64), ignore=[f"{EXPERTS}.3"])
        assert "experts 0-2, 4-7 (gate_proj, up_proj) quantised" in caught.value.seen
        assert f"experts 3 (gate_proj, up_proj) kept ('{EXPERTS}.3')" in caught.value.seen

    def test_without_a_shape_disagreement_is_found_too(self) -> None:
        for pattern in (f"{EXPERTS}.0", f"{EXPERTS}.300", r"re:.*experts\.[0-3]\..*"):
            with pytest.raises(PatternError, match="would be split"):
                decide(EXPERTS, ignore=[pattern])

    @given(st.integers(1, 40), st.data())
    def test_any_subset_of_experts_splits_and_all_of_them_do_not(
        self, count: int, data: st.DataObject
    ) -> None:
        chosen = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
        ignore = [f"experts.{index}" for index in sorted(chosen)]
        if len(chosen) == count:
            assert not decide(EXPERTS + ".gate_up_proj", (count, 8, 8), ignore=ignore).quantize
        else:
            with pytest.raises(PatternError, match="would be split"):
                decide(EXPERTS + ".gate_up_proj", (count, 8, 8), ignore=ignore)

    def test_the_number_of_experts_may_come_from_the_config_of_the_model(self) -> None:
        config = Mxfp4Config(ignore=[f"{EXPERTS}.{index}" for index in range(4)])
        for key in ("num_experts", "num_local_experts", "n_routed_experts"):
            assert not Resolver.for_model(config, {key: 4}).decide(EXPERTS).quantize
        with pytest.raises(PatternError, match=r"experts 4 .* quantised"):
            Resolver.for_model(config, {"num_experts": 5}).decide(EXPERTS)
        with pytest.raises(PatternError, match="would be split"):
            Resolver.for_model(config, {}).decide(EXPERTS)

    def test_a_wildcard_beside_a_digit_is_asked_of_every_expert(self) -> None:
        with pytest.raises(PatternError, match=r"experts 1, 10-12 \(down_proj\) kept"):
            decide(f"{EXPERTS}.down_proj", (13, 8, 8), ignore=["experts.1*"])

    def test_the_parts_of_the_experts_agree_across_tensors(self) -> None:
        resolver = Resolver(Mxfp4Config(ignore=["experts.down_proj"]))
        names = [(f"{EXPERTS}.gate_up_proj", (8, 64, 64)), (f"{EXPERTS}.down_proj", (8, 64, 64))]
        with pytest.raises(PatternError, match="experts would be split"):
            resolver.decide_all(names)

    @pytest.mark.parametrize(
        "pattern", ["experts.w13_weight", "experts.gate_up_proj", "experts.*.w1", "experts.*.gate_proj"]
    )
    def test_both_vocabularies_of_experts_are_understood(self, pattern: str) -> None:
        for name in (f"{EXPERTS}.5.gate_proj", f"{EXPERTS}.5.w1"):
            assert not decide(name, ignore=[pattern]).quantize

    def test_shared_experts_are_not_experts(self) -> None:
        assert decide("model.layers.0.mlp.shared_experts.up_proj", ignore=["experts"]).quantize


def test_a_hostile_number_of_experts_is_not_asked_one_by_one() -> None:
    with pytest.raises(PatternError, match="would be split"):
        decide(f"{EXPERTS}.down_proj", (10**12, 1, 32), ignore=[r"re:.*experts\.[0-9]\..*"])


def test_threads_get_the_same_decisions() -> None:
    config = Mxfp4Config(ignore=["qkv_proj", "experts.w2_weight", "experts.gate_up_proj"])
    parts = (
        "self_attn.q_proj",
        "self_attn.v_proj",
        "mlp.experts.1.w2",
        "mlp.experts.1.gate_proj",
        "mlp.experts",
    )
    names = [f"model.layers.{layer}.{part}" for layer in range(20) for part in parts]
    alone = [Resolver(config).decide(name) for name in names]
    shared = Resolver(config)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(shared.decide, names)) == alone
    assert shared.unmatched() == []


def test_an_override_sets_the_activation_of_what_it_hits() -> None:
    config = Mxfp4Config.from_dict(
        {"activation": "mxfp4", "overrides": [{"pattern": "down_proj", "activation": "none"}]}
    )
    resolver = Resolver(config)
    plain, other = (
        resolver.decide(f"model.layers.0.mlp.{name}.weight", (64, 64)) for name in ("up_proj", "down_proj")
    )
    assert (plain.activation, other.activation) == ("mxfp4", "none")
    assert plain.profile == other.profile == "even/even"


def test_parts_of_a_fused_module_have_one_activation() -> None:
    config = Mxfp4Config.from_dict({"overrides": [{"pattern": "gate_proj", "activation": "fp8"}]})
    with pytest.raises(PatternError, match="gate_proj quantised with activation fp8"):
        Resolver(config).decide("model.layers.0.mlp.gate_up_proj.weight", (64, 64))


def test_overrides_that_ask_for_two_activations_are_refused() -> None:
    overrides = [{"pattern": "up_proj", "activation": "fp8"}, {"pattern": "mlp", "activation": "none"}]
    with pytest.raises(PatternError, match="two different instructions"):
        Resolver(Mxfp4Config.from_dict({"overrides": overrides})).decide("layers.0.mlp.up_proj", (64, 64))


@pytest.mark.parametrize("key", ["ignore", "targets"])
@pytest.mark.parametrize("bias", [[], [("layers.0.up.bias", (64,))]])
def test_what_is_below_a_linear_is_not_the_linear(key: str, bias: list[tuple[str, tuple[int, ...]]]) -> None:
    names = [("layers.0.up.weight", (64, 64)), ("layers.1.up.weight", (64, 64)), *bias]
    with pytest.raises(PatternError, match="name patterns match nothing"):
        Resolver(Mxfp4Config.from_dict({key: ["layers.0.up.*"]})).decide_all(names)
    decided = Resolver(Mxfp4Config.from_dict({"ignore": ["layers.0.*"]})).decide_all(names)
    assert [each.quantize for each in decided[:2]] == [False, True]
