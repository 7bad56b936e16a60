"""The config: every way in reports in our words, suggests near misses and refuses contradictions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core import dialects, profiles
from mxfp4_core.config.known import dialect_names
from mxfp4_core.config.schema import CONFIG_VERSION, PROFILE_NAMES, TIES, Mxfp4Config, Override
from mxfp4_core.config.words import ACTIVATIONS
from mxfp4_core.errors import ConfigError, PatternError

SCHEMA = Path(__file__).parents[4] / "docs" / "config.schema.json"
COMPONENT = st.text("abcz_019", min_size=1, max_size=5)
PATTERN = st.lists(COMPONENT, min_size=1, max_size=3).map(".".join)
ARITHMETIC = st.one_of(
    st.fixed_dictionaries(
        {"profile": st.sampled_from([*PROFILE_NAMES, "even/away", "ceil_d(7.25)/zero", "ceil_d(7.250)/even"])}
    ),
    st.fixed_dictionaries(
        {}, optional={"rule": st.sampled_from(["even", "floor", "ceil_d(7)"]), "ties": st.sampled_from(TIES)}
    ),
)


@st.composite
def configs(draw: st.DrawFn) -> Mxfp4Config:
    patterns = draw(st.lists(PATTERN, unique=True, max_size=6))
    cuts = sorted(draw(st.tuples(*[st.integers(0, len(patterns))] * 2)))
    overrides = [{"pattern": pattern, "keep": draw(st.booleans())} for pattern in patterns[cuts[1] :]]
    data: dict[str, Any] = {
        **draw(ARITHMETIC),
        "targets": patterns[: cuts[0]],
        "ignore": patterns[cuts[0] : cuts[1]],
        "overrides": overrides,
        "keep_defaults": draw(st.booleans()),
        "dialect": draw(st.sampled_from(["auto", *dialects.names()])),
        "tail": draw(st.sampled_from(["refuse", "pad"])),
        "nonfinite": draw(st.sampled_from(["refuse", "nan"])),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "backend": draw(st.sampled_from([None, "reference", "some-other-backend"])),
    }
    return Mxfp4Config.from_dict(data)


@given(configs())
def test_a_config_survives_its_dictionary_and_json(config: Mxfp4Config) -> None:
    data = json.loads(json.dumps(config.to_dict()))
    again = Mxfp4Config.from_dict(data)
    assert again == config and again.fingerprint() == config.fingerprint()
    assert again.resolved_profile() == config.resolved_profile()


@given(configs(), configs())
def test_fingerprints_tell_configs_apart(one: Mxfp4Config, other: Mxfp4Config) -> None:
    assert (one.fingerprint() == other.fingerprint()) == (one == other)


@given(configs())
def test_the_resolved_profile_is_the_one_that_quantises(config: Mxfp4Config) -> None:
    from mxfp4_core.arithmetic.profiles import resolve

    name = config.resolved_profile()
    assert resolve(config.profile, rule=config.rule, ties=config.ties).name == name
    assert resolve(name).name == name


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner)
    )
)
def test_whatever_is_not_a_config_is_a_config_error(value: Any) -> None:
    with pytest.raises(ConfigError):
        Mxfp4Config.from_dict(value)
    with pytest.raises(ConfigError):
        Mxfp4Config(overrides=[value])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"ignroe": []}, "did you mean 'ignore'?"),
        ({"profile": "quarc"}, "did you mean 'quark'?"),
        ({"profile": "modelopts"}, "did you mean 'modelopt'?"),
        ({"rule": "evn"}, "did you mean 'even'?"),
        ({"rule": "ceil_d(9)"}, "D = 9"),
        ({"ties": "awya"}, "did you mean 'away'?"),
        ({"profile": "even/awya"}, "did you mean 'away'?"),
        ({"profile": "evn/away"}, "did you mean 'even'?"),
        ({"dialect": "compressed_tensors"}, "did you mean 'compressed-tensors'?"),
        ({"backend": "refrence"}, "did you mean 'reference'?"),
        ({"fallback": "refrence"}, "did you mean 'reference'?"),
        ({"backend": ""}, "backend"),
        ({"activation": "fp4"}, "'none', 'mxfp4', 'mxfp8', 'fp8' or 'auto'"),
        ({"tail": "drop"}, "'refuse' or 'pad'"),
        ({"keep_defaults": "yes"}, "keep_defaults = 'yes'"),
        ({"version": "1"}, "version = '1'"),
        ({"version": CONFIG_VERSION + 1, "new_key": 1}, "upgrade mxfp4-core"),
        ({"version": 0}, f"write version = {CONFIG_VERSION}"),
        ({"profile": "quark", "rule": "even"}, "drop profile, or drop rule and ties"),
        ({"profile": "quark", "ties": "even"}, "drop profile, or drop rule and ties"),
        ({"backend": "reference", "fallback": "reference"}, "a fallback is another backend"),
        ({"targets": ["a"], "ignore": ["a"]}, "'a' in targets and in ignore"),
        ({"ignore": ["a", "a"]}, "'a' more than once"),
        ({"ignore": ["a..b"]}, "'a..b'"),
        ({"targets": ["re:("]}, "regular expression"),
        ({"overrides": [{"pattern": "a", "keep": True}, {"pattern": "a", "keep": True}]}, "'a' twice"),
        (
            {"overrides": [{"pattern": "a", "rule": "floor"}], "ignore": ["a"]},
            "an override that quantises it",
        ),
        ({"overrides": [{"pattern": "a", "keep": True}], "targets": ["a"]}, "an override that keeps it"),
        (
            {"overrides": [{"pattern": "a", "keep": True, "ties": "away"}]},
            "a weight that is kept has no rule",
        ),
        ({"overrides": [{"pattern": "a"}]}, "an override changes something"),
        (
            {"overrides": [{"pattern": "a", "keep": True, "activation": "fp8"}]},
            "keep = true with activation = 'fp8'",
        ),
        ({"overrides": [{"pattern": "a", "activation": "fp"}]}, "'none', 'mxfp4', 'mxfp8', 'fp8' or 'auto'"),
        ({"backend_options": {"refrence": {}}}, "did you mean 'reference'?"),
        ({"backend_options": {"rocm": 5}}, "backend_options.rocm"),
        ({"backend_options": {"rocm": {"provider": {"a": 1}}}}, "a value is a string, a number"),
        ({"backend_options": {"rocm": {"provider": None}}}, "a value is a string, a number"),
        ({"backend_options": {"rocm": {}}, "backend": "npu"}, "options for 'rocm', where backend = 'npu'"),
        ({"overrides": [{"pattern": "a", "ties": "away"}], "profile": "quark"}, "set both, or a profile"),
        ({"overrides": [{"patern": "a", "keep": True}]}, "did you mean 'pattern'?"),
        ({"overrides": [{"pattern": "a..", "keep": True}]}, "'a..'"),
    ],
)
def test_a_bad_setting_is_explained(data: dict[str, Any], words: str) -> None:
    for build in (Mxfp4Config.from_dict, lambda data: Mxfp4Config(**data), Mxfp4Config.model_validate):
        with pytest.raises(ConfigError) as caught:
            build(data)
        assert words in str(caught.value)
        assert caught.value.fix and caught.value.rule


def test_options_may_be_for_the_backend_the_fallback_or_several_machines() -> None:
    options = {"rocm": {"provider": "triton", "tiles": [64, 128]}, "reference": {}}
    config = Mxfp4Config(backend="rocm", fallback="reference", backend_options=options)
    assert Mxfp4Config.from_dict(config.to_dict()) == config
    assert Mxfp4Config(backend_options=options).backend_options == options


def test_an_override_may_set_the_activation_alone() -> None:
    config = Mxfp4Config.from_dict(
        {"profile": "quark", "activation": "mxfp4", "overrides": [{"pattern": "a", "activation": "auto"}]}
    )
    (override,) = config.overrides
    assert (config.activation_for(override), config.profile_for(override)) == ("auto", "quark")
    assert config.activation_for(None) == "mxfp4" and config.activations() == ("mxfp4", "auto")


def test_an_unknown_backend_that_resembles_none_is_left_to_the_selection() -> None:
    assert Mxfp4Config(backend="acme-tpu").backend == "acme-tpu"


def test_pattern_errors_are_config_errors() -> None:
    with pytest.raises(PatternError):
        Mxfp4Config(ignore=["a b"])


def test_a_config_cannot_be_changed_in_place() -> None:
    config = Mxfp4Config()
    with pytest.raises(Exception, match="frozen"):
        config.rule = "floor"  # pyright: ignore[reportAttributeAccessIssue]


def test_defaults_are_even_even_and_the_dialect_that_fits() -> None:
    config = Mxfp4Config()
    assert (config.resolved_profile(), config.dialect, config.version) == (
        "even/even",
        "auto",
        CONFIG_VERSION,
    )


@pytest.mark.parametrize(
    ("config", "override", "profile"),
    [
        ({}, {"ties": "away"}, "even/away"),
        ({"rule": "floor"}, {"ties": "away"}, "floor/away"),
        ({"ties": "zero"}, {"rule": "ceil"}, "ceil/zero"),
        ({"rule": "floor"}, {"keep": False}, "floor/even"),
        ({"profile": "quark"}, {"keep": False}, "quark"),
        ({"profile": "quark"}, {"rule": "floor", "ties": "zero"}, "floor/zero"),
        ({"profile": "quark"}, {"profile": "gguf"}, "gguf"),
        ({"rule": "floor"}, {"profile": "even/away"}, "even/away"),
    ],
)
def test_an_override_inherits_the_half_that_it_does_not_set(
    config: dict[str, str], override: dict[str, Any], profile: str
) -> None:
    built = Mxfp4Config.from_dict({**config, "overrides": [{"pattern": "a", **override}]})
    assert built.profile_for(built.overrides[0]) == profile


def test_the_names_that_are_repeated_here_are_those_that_exist() -> None:
    assert tuple(profiles()) == PROFILE_NAMES
    assert dialects.names() == dialect_names()
    from mxfp4_core.arithmetic.codec import Ties

    assert tuple(Ties) == TIES


def test_files_are_read_as_json_and_toml(tmp_path: Path) -> None:
    config = Mxfp4Config(rule="floor", ignore=["lm_head"], overrides=[Override(pattern="a.b", ties="away")])
    (tmp_path / "a.json").write_text(json.dumps(config.to_dict()))
    assert Mxfp4Config.from_file(tmp_path / "a.json") == config
    (tmp_path / "a.toml").write_text(
        'rule = "floor"\nignore = ["lm_head"]\n[[overrides]]\npattern = "a.b"\nties = "away"\n'
    )
    assert Mxfp4Config.from_file(str(tmp_path / "a.toml")) == config


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'{"rule": "even", "rule": "floor"}', "'rule' appears twice"),
        ("a.json", b"{", "cannot be parsed"),
        ("a.json", b"[" * 100_000, "cannot be parsed"),
        ("a.json", b"[]", "the config is a table"),
        ("a.json", b"\xff\xfe", "cannot be read"),
        ("a.toml", b"rule = ", "cannot be parsed"),
        ("missing.json", None, "cannot be read"),
    ],
)
def test_a_bad_file_is_explained(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        Mxfp4Config.from_file(tmp_path / name)


def test_the_committed_schema_is_current() -> None:
    assert json.loads(SCHEMA.read_text()) == Mxfp4Config.json_schema()


def test_the_schema_lists_every_key_with_a_description() -> None:
    schema = Mxfp4Config.json_schema()
    assert set(schema["properties"]) == set(Mxfp4Config.model_fields)
    assert all(entry.get("description") for entry in schema["properties"].values())
    assert schema["additionalProperties"] is False
    assert schema["properties"]["dialect"]["enum"] == ["auto", *dialects.names()]


def test_config_rules_and_plan_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mxfp4_core.config import Mxfp4Config\n"
        "from mxfp4_core.naming.resolver import Resolver\n"
        "from mxfp4_core.arithmetic import shapes\n"
        "print(Resolver(Mxfp4Config(rule='floor', profile=None)).decide('a.q_proj').profile)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "floor/even", done.stderr
