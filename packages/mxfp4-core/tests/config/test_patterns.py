"""Patterns: whole components, wildcards, exact names, expressions, near misses."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.config.patterns import Pattern, PatternSet, near_misses
from mxfp4_core.errors import PatternError

COMPONENT = st.text("abgt01_", min_size=1, max_size=3)
PATH = st.lists(COMPONENT, min_size=1, max_size=6)


def hits(pattern: str, name: str) -> bool:
    return Pattern.parse(pattern).matches(name)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("lm_head", "lm_head.weight", True),
        ("lm_head", "lm_head_2.weight", False),
        ("lm_head", "my_lm_head", False),
        ("mlp.gate", "model.layers.3.mlp.gate", True),
        ("mlp.gate", "model.layers.3.mlp.gate.weight", True),
        ("mlp.gate", "model.layers.3.mlp.gate_proj.weight", False),
        ("mlp.gate", "model.layers.3.mlp.shared.gate", False),
        ("mlp.gate.weight", "model.layers.3.mlp.gate.weight", True),
        ("shared_expert", "model.layers.3.mlp.shared_expert.up_proj.weight", True),
        ("shared_expert", "model.layers.3.mlp.shared_expert_gate.weight", False),
        ("layers.1", "model.layers.1.mlp.up_proj.weight", True),
        ("layers.1", "model.layers.11.mlp.up_proj.weight", False),
        ("layers.*.self_attn", "model.layers.11.self_attn.q_proj.weight", True),
        ("layers.*.self_attn", "model.layers.1.x.self_attn.q_proj.weight", False),
        ("layers.**.q_proj", "model.layers.1.x.self_attn.q_proj.weight", True),
        ("layers.**.1", "model.layers.1.mlp.up_proj", True),
        ("**.lm_head", "lm_head.weight", True),
        ("mlp.**", "model.layers.1.mlp.up_proj.weight", True),
        ("*_proj", "model.layers.1.mlp.up_proj.weight", True),
        ("mlp.*", "model.layers.1.mlp", False),
        ("=model.norm", "model.norm.weight", True),
        ("=model.norm", "visual.model.norm", False),
        ("=norm", "model.norm", False),
        (r"re:.*v_proj", "model.layers.1.self_attn.v_proj", True),
        (r"re:v_proj", "model.layers.1.self_attn.v_proj", False),
        (r"re:.*\.gate\.weight", "model.layers.1.mlp.gate", True),
        (r"re:.*gate$", "model.layers.1.mlp.gate.weight", True),
    ],
)
def test_a_pattern_hits_whole_components(pattern: str, name: str, expected: bool) -> None:
    assert hits(pattern, name) is expected


@given(PATH, PATH)
def test_a_literal_hits_exactly_the_names_that_contain_its_components_as_a_run(
    path: list[str], name: list[str]
) -> None:
    runs = [name[start : start + len(path)] for start in range(len(name))]
    assert hits(".".join(path), ".".join(name)) is (path in runs)


@given(PATH, st.data())
def test_a_star_hits_every_component_in_its_place(name: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name) - 1))
    starred = [*name[:place], "*", *name[place + 1 :]]
    assert hits(".".join(starred), ".".join(name))
    if len(name) > 1:
        assert not hits(".".join(starred), ".".join([*name[:place], *name[place + 1 :]]))


@given(
    st.lists(st.one_of(PATH.map(".".join), PATH.map(lambda path: "=" + ".".join(path))), unique=True), PATH
)
def test_a_set_finds_what_each_of_its_patterns_matches(texts: list[str], name: list[str]) -> None:
    expected = [text for text in texts if hits(text, ".".join(name))]
    assert PatternSet(texts).find(".".join(name)) == expected


@given(st.text("ab.*=:[(\\", max_size=8))
def test_any_text_is_a_pattern_or_a_pattern_error(text: str) -> None:
    try:
        Pattern.parse(text).matches("a.b")
    except PatternError as error:
        assert repr(text) in error.seen


@pytest.mark.parametrize(
    "text", ["", "a..b", ".a", "a.", "a b", "a.b**.c", "=a.*", "re:(", "(a)", "x" * 3000]
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(PatternError, match="cannot be read"):
        Pattern.parse(text)


def test_a_regular_expression_is_not_read_as_a_path() -> None:
    with pytest.raises(PatternError, match=re.escape("after 're:'")):
        Pattern.parse(r"layers\.0")


NAMES = [f"model.layers.{layer}.{part}" for layer in range(3) for part in ("mlp.gate", "self_attn.q_proj")]


@pytest.mark.parametrize(
    ("text", "suggested"),
    [
        ("mlp.gat", "mlp.gate"),
        ("layers.0.self_atn", "layers.0.self_attn"),
        ("=model.layers.0.mlp.gates", "model.layers.0.mlp.gate"),
        (r"re:.*\.mlp\.gates", "model.layers.*.mlp.gate"),
        ("gate.self_attn", "model.layers.*.self_attn.q_proj"),
    ],
)
def test_near_misses_match_something(text: str, suggested: str) -> None:
    found = near_misses(text, NAMES)
    assert suggested in found
    assert all(PatternSet([each]).find(name) for each in found for name in NAMES if hits(each, name))
    assert all(any(hits(each, name) for name in NAMES) for each in found)


def test_patterns_that_tell_numbers_apart_are_known() -> None:
    for text in (r"re:.*experts\.[0-3]\..*", r"re:.*\d+.*", "experts.1*", r"re:.*experts\.1.*", r"re:a{2}"):
        assert PatternSet([text]).searches_numbers, text
    for text in ("experts.1", "experts.*", r"re:.*gate$", "=a.1", r"re:model\.layers\.1\.mlp"):
        assert not PatternSet([text]).searches_numbers, text
