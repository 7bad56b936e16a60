"""The key ``format``: what weights become, and which profiles make it."""

from __future__ import annotations

import pytest

from mxfp4_core.arithmetic import get_format
from mxfp4_core.arithmetic.peers import DUAL_PEERS
from mxfp4_core.config.checks import DUAL_PROFILE_NAMES
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.config.words import FORMATS
from mxfp4_core.errors import ConfigError


def test_the_names_are_those_of_the_formats() -> None:
    assert tuple(profile.name for profile in DUAL_PEERS) == DUAL_PROFILE_NAMES
    assert [get_format(name).name for name in FORMATS] == list(FORMATS)


@pytest.mark.parametrize(
    ("settings", "profile"),
    [
        ({}, "even/even"),
        ({"format": "mxfp4-dual"}, "ascend"),
        ({"format": "mxfp4-dual", "profile": "msmodelslim"}, "msmodelslim"),
        ({"format": "mxfp4-dual", "rule": "even", "ties": "away"}, "even/away"),
        ({"format": "mxfp8"}, "floor/even"),
    ],
)
def test_the_profile_is_that_of_the_format(settings: dict[str, str], profile: str) -> None:
    config = Mxfp4Config.from_dict(settings)
    assert config.resolved_profile() == config.profile_for(None) == profile
    assert Mxfp4Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"format": "mxfp5"}, "mxfp5"),
        ({"format": "mxfp4+input_scale"}, "input_scale"),
        ({"format": "mxfp4-dual", "profile": "quark"}, "quark"),
        ({"profile": "ascend"}, "ascend"),
        ({"format": "mxfp8", "profile": "ascend"}, "ascend"),
        ({"format": "mxfp4-dual", "overrides": [{"pattern": "*", "profile": "gguf"}]}, "gguf"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], seen: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Mxfp4Config.from_dict(settings)
    assert seen in caught.value.seen


def test_a_config_without_another_format_has_the_fingerprint_it_had() -> None:
    config = Mxfp4Config.from_dict({})
    assert "format" not in config.to_dict()
    assert config.fingerprint() != Mxfp4Config.from_dict({"format": "mxfp8"}).fingerprint()
