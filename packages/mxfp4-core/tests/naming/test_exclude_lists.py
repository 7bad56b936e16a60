"""Foreign exclude lists: ours hits exactly what the producer's own matcher hits."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

import pytest
from compressed_tensors.utils.match import match_name  # pyright: ignore[reportMissingTypeStubs]
from hypothesis import given
from hypothesis import strategies as st
from transformers.quantizers.quantizers_utils import should_convert_module

from mxfp4_core.config.patterns import Pattern
from mxfp4_core.errors import ConfigError, PatternError
from mxfp4_core.naming.resolver import exclude_patterns

PIECE = st.sampled_from(
    ["model", "layers", "1", "11", "mlp", "gate", "gate_proj", "lm_head", "shared_expert"]
)
NAME = st.lists(PIECE, min_size=1, max_size=6).map(".".join)
GLOB = st.lists(
    st.sampled_from(["*", "?", "[0-9]", "mlp", ".", "gate", "layers", "1"]), min_size=1, max_size=6
).map("".join)
REGEX = st.lists(
    st.sampled_from([".*", r"\.", "mlp", "gate", "$", r"\d+", "(gate|mlp)", "1"]), min_size=1, max_size=5
).map("".join)


def ours(dialect: str, entry: str, module: str) -> bool:
    (text,) = exclude_patterns(dialect, [entry])
    return Pattern.parse(text).matches(module)


def agrees(theirs: Callable[[str], bool], dialect: str, entry: str, module: str) -> bool:
    return ours(dialect, entry, module) == (theirs(module) or theirs(f"{module}.weight"))


@given(st.one_of(NAME, GLOB), NAME, st.sampled_from(["quark", "modelopt"]))
def test_globs_hit_what_fnmatch_hits(entry: str, module: str, dialect: str) -> None:
    assert agrees(lambda name: fnmatch.fnmatchcase(name, entry), dialect, entry, module)


@given(st.one_of(NAME, REGEX.map(lambda text: f"re:{text}")), NAME)
def test_compressed_tensors_entries_hit_what_their_matcher_hits(entry: str, module: str) -> None:
    assert agrees(lambda name: bool(match_name(name, entry)), "compressed-tensors", entry, module)


@given(st.one_of(NAME, REGEX), NAME)
def test_transformers_entries_hit_what_their_matcher_hits(entry: str, module: str) -> None:
    assert agrees(lambda name: not should_convert_module(name, [entry]), "transformers", entry, module)


@given(st.one_of(NAME, REGEX.map(lambda text: f"re:{text}")), NAME)
def test_sglang_entries_are_names_or_anchored_at_the_start(entry: str, module: str) -> None:
    def theirs(name: str) -> bool:
        return bool(re.match(entry[3:], name)) if entry.startswith("re:") else entry == name

    assert agrees(theirs, "sglang", entry, module)


@given(NAME, NAME)
def test_sglang_diffusion_entries_are_dotted_paths(entry: str, module: str) -> None:
    assert ours("sglang-diffusion", entry, module) is (f".{entry}." in f".{module}.")


@pytest.mark.parametrize(
    ("dialect", "entry", "translated"),
    [
        ("quark", "lm_head", "=lm_head"),
        ("quark", "*self_attn*", "re:.*self_attn.*"),
        ("modelopt", "model.layers.0.self_attn*", r"re:model\.layers\.0\.self_attn.*"),
        ("compressed-tensors", "lm_head", "=lm_head"),
        ("compressed-tensors", "re:.*gate", "re:(?:.*gate).*"),
        ("msmodelslim", "model.norm.weight", "=model.norm.weight"),
        ("mxfp4-core", "mlp.gate", "mlp.gate"),
    ],
)
def test_translations_stay_readable(dialect: str, entry: str, translated: str) -> None:
    assert exclude_patterns(dialect, [entry]) == [translated]


def test_repetitions_are_dropped_and_order_is_kept() -> None:
    assert exclude_patterns("quark", ["b", "a", "b"]) == ["=b", "=a"]


def test_an_unknown_dialect_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'modelopt'"):
        exclude_patterns("modelop", [])


def test_an_entry_that_cannot_be_read_names_its_list() -> None:
    with pytest.raises(PatternError, match="compressed-tensors exclude list"):
        exclude_patterns("compressed-tensors", ["re:("])
