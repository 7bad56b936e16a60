"""Towers of all model types of the installed transformers: what its classes build beside a language model stays."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

from architectures.build import configured
from architectures.catalogue import Kind, kinds

from mxfp4_core.config import Mxfp4Config
from mxfp4_core.modules import decide
from mxfp4_core.naming import Decision
from mxfp4_transformers.view import view_of

BESIDE = ("vision_config", "audio_config")
# What sees is the model, or half of it: two encoders that meet in one space, or one that a decoder writes out.
ALONE = ("blip", "clip", "metaclip_2", "omniasr_ctc", "pix2struct", "siglip", "siglip2")
WRITTEN_OUT = ("pp_formulanet",)  # with a projector between, which stays
LANGUAGE = ("text_config", "llm_config")


def candidates() -> list[str]:
    return [
        name
        for name, kind in kinds().items()
        if any(key in (kind.config_class.sub_configs or {}) for key in BESIDE)
    ]


def parts(model: PreTrainedModel, keys: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths of the models inside of a model that are built from such a section of its config."""
    configs = [
        getattr(each.config, key, None)
        for each in model.modules()
        if isinstance(each, PreTrainedModel)
        for key in keys
    ]
    known = {id(config) for config in configs if config is not None}
    for path, module in model.named_modules():
        if path and isinstance(module, PreTrainedModel) and id(module.config) in known:
            yield path


def decided(kind: Kind, **settings: Any) -> tuple[PreTrainedModel, dict[str, Decision]]:
    config = configured(kind)
    for key in BESIDE:  # Gemma 4, for one, has no towers unless its config names them
        section = (kind.config_class.sub_configs or {}).get(key)
        if section not in (None, AutoConfig) and getattr(config, key, None) is None:
            setattr(config, key, section())
    with torch.device("meta"):
        model = kind.auto_class.from_config(config)
    return model, decide(Mxfp4Config(**settings), view_of(model, {}), check=False)


def below(paths: list[str], name: str) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


@pytest.mark.filterwarnings("ignore")
def test_towers_of_every_type_stay_and_nothing_of_its_language_model_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    seen = set()
    for name in candidates():
        try:
            model, decisions = decided(kinds()[name])
        except Exception:
            continue  # it needs a package that is not here, or has no small config: see docs/architectures.md
        towers, language = list(parts(model, BESIDE)), list(parts(model, LANGUAGE))
        if name in ALONE:
            assert not any(each.row for each in decisions.values()), name
        if name in ALONE or name in WRITTEN_OUT:
            continue
        inside = [each for each in decisions if below(towers, each) and not below(language, each)]
        left = [each for each in inside if decisions[each].quantize]
        assert not left, (name, left[:3])
        wrong = [each for each in decisions if below(language, each) and "tower" in decisions[each].reason]
        assert not [each for each in wrong if not below(towers, each)], (name, wrong[:3])
        assert any(each.quantize for each in decisions.values()), name
        if any(decisions[each].row for each in inside):
            seen.add(name)
    assert len(seen) > 50
    assert {
        "qwen2_5_vl",
        "qwen3_vl_moe",
        "gemma3",
        "gemma4",
        "llava",
        "mistral3",
        "internvl",
        "llama4",
        "qwen2_audio",
    } <= seen


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava", "qwen2_audio"])
def test_towers_become_mxfp4_where_somebody_says_so(name: str) -> None:
    model, off = decided(kinds()[name], family_defaults=False)
    (tower,) = parts(model, BESIDE)
    assert any(off[each].quantize for each in off if below([tower], each))
    forced = decided(kinds()[name], overrides=[{"pattern": tower.rpartition(".")[2], "keep": False}])[1]
    assert {each for each in off if off[each].quantize and below([tower], each)} == {
        each for each in forced if forced[each].quantize and below([tower], each)
    }
