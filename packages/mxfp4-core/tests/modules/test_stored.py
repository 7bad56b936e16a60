"""A plan for weights that a checkpoint holds quantised, held against the config that it comes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import ConfigError
from mxfp4_core.modules import Stored, plan_stored


def model() -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleDict(
            {"one": nn.Linear(64, 64), "two": nn.Linear(64, 64), "norm": nn.LayerNorm(64)}
        ).bfloat16()


def stored(names: Sequence[str]) -> dict[str, Stored]:
    return {f"{name}.weight": Stored(profile="even/even") for name in names}


def test_what_is_stored_is_planned_and_the_rest_says_why_not() -> None:
    plan = plan_stored(model(), stored(["one"]), config=Mxfp4Config.from_dict({"ignore": ["two"]}))
    assert [site.path for site in plan.sites] == ["one"]
    assert plan.profile == "even/even" and plan.reasons["one"] == "in the checkpoint"
    assert "ignore" in plan.reasons["two"]
    bare = plan_stored(model(), stored(["two"]))
    assert [site.path for site in bare.sites] == ["two"]
    assert bare.reasons["one"] == "in high precision in the checkpoint"


@pytest.mark.parametrize(
    ("names", "settings", "seen", "rule"),
    [
        (["one", "two"], {"ignore": ["two"]}, "two.weight is MXFP4", "the config keeps it: "),
        (["one"], {}, "two is in high precision", "two.weight is quantised: "),
        (["one", "two", "norm"], {}, "norm.weight is MXFP4", "which norm.weight is not"),
    ],
)
def test_a_config_that_contradicts_the_checkpoint_is_refused(
    names: list[str], settings: dict[str, Any], seen: str, rule: str
) -> None:
    with pytest.raises(ConfigError, match="the config contradicts the checkpoint") as caught:
        plan_stored(model(), stored(names), config=Mxfp4Config.from_dict(settings))
    assert caught.value.seen == seen
    assert rule in caught.value.rule and not caught.value.rule.endswith(": ")
