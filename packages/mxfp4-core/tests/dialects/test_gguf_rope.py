"""How positions are scaled survives a GGUF file that comes without config.json, or its reading is an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core import Mxfp4Config
from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.dialects.gguf_names import ARCHITECTURES
from mxfp4_core.dialects.gguf_rope import FACTORS, explains, rope_factors
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import convert_checkpoint, quantize_checkpoint

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
MODEL = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
         "hidden_size": 64, "vocab_size": 48, "rope_theta": 500000.0}  # fmt: skip
LLAMA = ARCHITECTURES["llama"]


def values(model: dict[str, Any]) -> tuple[float, ...]:
    made = rope_factors(model)
    return tuple(torch.tensor(made[FACTORS].values).tolist()) if made else ()  # type: ignore[attr-defined]


def read(model: dict[str, Any], factors: tuple[float, ...] | None = None) -> dict[str, Any]:
    return LLAMA.config(LLAMA.settings(model), values(model) if factors is None else factors)


@pytest.mark.parametrize("rope", [
    LLAMA3, {**LLAMA3, "factor": 32.0}, {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": 32.0},
])  # fmt: skip
@pytest.mark.parametrize("width", [64, 128])
def test_the_words_come_back(rope: dict[str, Any], width: int) -> None:
    found = read({**MODEL, "head_dim": width, "rope_scaling": rope})
    assert found["rope_scaling"] == rope
    assert "rope_scaling" not in read(MODEL)


@given(
    factor=st.floats(1.5, 64), low=st.floats(0.5, 4), more=st.floats(1, 8), theta=st.floats(1e4, 1e7),
    length=st.sampled_from([2048, 4096, 8192, 16384]), width=st.sampled_from([64, 96, 128, 256]),
)  # fmt: skip
def test_the_same_model_comes_back_or_an_error(
    factor: float, low: float, more: float, theta: float, length: int, width: int
) -> None:
    rope = {**LLAMA3, "factor": factor, "low_freq_factor": low, "high_freq_factor": low + more,
            "original_max_position_embeddings": length}  # fmt: skip
    model = {**MODEL, "head_dim": width, "rope_theta": theta, "rope_scaling": rope}
    try:
        found = read(model)
    except DialectError as error:
        assert "put the config.json of the model beside the file" in str(error)
        return
    assert explains(found, values(model))


def test_usual_bounds_of_another_length_come_back_as_the_same_model() -> None:
    model = {**MODEL, "head_dim": 128, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 4096}}
    found = read(model)["rope_scaling"]
    assert (found["low_freq_factor"], found["high_freq_factor"]) == (2.0, 8.0)
    assert (found["original_max_position_embeddings"], found["factor"]) == (8192, 8.0)


@pytest.mark.parametrize(
    ("settings", "factors", "seen"),
    [
        ({}, (1.0, 2.0, 1.0, 8.0, 8.0, 8.0, 8.0, 8.0), "8 numbers from 1.0 to 8.0"),
        ({}, (float("nan"),) * 8, "rope_freqs"),
        ({}, (float("inf"),) * 8, "rope_freqs"),
        ({}, (0.0,) * 8, "rope_freqs"),
        ({}, (8.0,) * 7, "7 numbers"),
        ({"rope.freq_base": -1.0}, (8.0,) * 8, "rope_freqs"),
        ({"rope.freq_base": 0.0}, (8.0,) * 8, "rope_freqs"),
        ({"rope.scaling.type": "longrope"}, (), "longrope"),
        ({"rope.scaling.type": ["yarn"]}, (), "yarn"),
        ({"rope.scaling.type": "linear"}, (), "factor = None"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, (), "original_context_length"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, (8.0,) * 8, "positions are scaled in one way"),
        ({"rope.dimension_count": 8}, (), "whole heads are turned"),
    ],
)  # fmt: skip
def test_what_has_no_words_is_an_error(
    settings: dict[str, Any], factors: tuple[float, ...], seen: str
) -> None:
    given = {**LLAMA.settings(MODEL), **{f"llama.{key}": value for key, value in settings.items()}}
    with pytest.raises(DialectError, match=seen):
        LLAMA.config(given, factors)


def test_experts_of_gpt_oss_keep_their_yarn() -> None:
    rope = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
    known = ARCHITECTURES["gpt-oss"]
    model = {"model_type": "gpt_oss", "head_dim": 64, "rope_scaling": rope, "rope_theta": 150000.0}
    assert known.config(known.settings(model))["rope_scaling"] == {**rope, "truncate": False}


def test_a_file_without_config(
    save: Callable[..., Path], dense: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    dense["model.layers.0.post_attention_layernorm.weight"] = torch.ones(64).bfloat16()
    source = save(dense, config={**MODEL, "rope_scaling": LLAMA3})
    quantize_checkpoint(source, tmp_path / "native", Mxfp4Config(dialect="mxfp4-core"), models="none")
    convert_checkpoint(tmp_path / "native", tmp_path / "gguf", "gguf")
    (tmp_path / "gguf" / "config.json").unlink()
    convert_checkpoint(tmp_path / "gguf", tmp_path / "back", "mxfp4-core")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["rope_scaling"] == LLAMA3 and config["rope_theta"] == 500000.0
    assert FACTORS not in open_checkpoint(tmp_path / "back").tensors
    convert_checkpoint(tmp_path / "back", tmp_path / "again", "gguf")
    both = [open_checkpoint(tmp_path / name).load(FACTORS) for name in ("gguf", "again")]
    assert torch.equal(*both)
    (tmp_path / "gguf" / "config.json").write_text(json.dumps(MODEL))
    with pytest.raises(DialectError, match=r"config\.json is that of the model in the file"):
        convert_checkpoint(tmp_path / "gguf", tmp_path / "wrong", "mxfp4-core")
