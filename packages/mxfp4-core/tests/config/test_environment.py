"""The config in an environment variable, for processes whose command line belongs to an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from mxfp4_core import Mxfp4Config
from mxfp4_core.config import config_for_stored, config_of_environment
from mxfp4_core.errors import ConfigError


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MXFP4_CONFIG", raising=False)


def test_without_the_variable_it_is_the_default() -> None:
    assert config_of_environment() == Mxfp4Config()
    assert config_of_environment(format="mxfp8").format == "mxfp8"


def test_it_is_json_or_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MXFP4_CONFIG", '{"rule": "floor"}')
    assert config_of_environment().rule == "floor"
    path = tmp_path / "mine.toml"
    path.write_text('rule = "ceil"\nignore = ["lm_head"]\n')
    monkeypatch.setenv("MXFP4_CONFIG", str(path))
    found = config_of_environment()
    assert (found.rule, found.ignore) == ("ceil", ["lm_head"])
    assert config_of_environment('{"rule": "floor"}').rule == "floor"


@pytest.mark.parametrize("text", ["{rule}", "[1]", '{"rul": "floor"}'])
def test_what_is_no_config_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError):
        config_of_environment(text)


def test_two_that_contradict_each_other_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"format: 'mxfp4', but 'mxfp8'"):
        config_of_environment('{"format": "mxfp4"}', format="mxfp8")


def test_a_stored_checkpoint_leaves_the_machine_open() -> None:
    found = config_for_stored({"rule": "floor"}, '{"backend": "reference", "rule": "floor"}')
    assert (found.rule, found.backend) == ("floor", "reference")
    with pytest.raises(ConfigError, match=r"rule: 'ceil', but 'floor' in the checkpoint"):
        config_for_stored({"rule": "floor"}, '{"rule": "ceil"}')
    with pytest.raises(ConfigError, match=r"ignore"):
        config_for_stored({}, '{"ignore": ["lm_head"]}')


def test_a_stored_checkpoint_that_says_nothing_about_activations_leaves_them_open() -> None:
    assert "activation" not in config_for_stored({"rule": "floor"}).model_fields_set
    assert config_for_stored({}, '{"activation": "mxfp4"}').activation == "mxfp4"
    assert "activation" in config_for_stored({"activation": "none"}).model_fields_set
    with pytest.raises(ConfigError, match="activation"):
        config_for_stored({"activation": "none"}, '{"activation": "mxfp4"}')
