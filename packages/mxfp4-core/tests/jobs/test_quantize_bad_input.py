"""What cannot be quantised is an error, and leaves nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mxfp4_core import Mxfp4Config
from mxfp4_core.errors import (
    ConfigError,
    DialectError,
    FormatError,
    Mxfp4Error,
    NonFiniteError,
    OutputError,
    PatternError,
    ShapeError,
)
from mxfp4_core.jobs import units as units_module
from mxfp4_core.jobs.quantize import quantize_checkpoint

Save = Callable[..., Path]


Contents = Callable[[Path], dict[str, bytes]]


LAYER = "model.layers.0."


Q = f"{LAYER}self_attn.q_proj.weight"


def config(**settings: object) -> Mxfp4Config:
    return Mxfp4Config.from_dict(dict(settings))


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


BAD: dict[str, tuple[dict[str, torch.Tensor], dict[str, object], type[Mxfp4Error], str]] = {
    "NaN": (
        {Q: torch.full((64, 64), math.nan).bfloat16()},
        {},
        NonFiniteError,
        r"q_proj.*\n.*nan at index \[0, 0\]",
    ),
    "K not divisible": ({Q: torch.ones(64, 40)}, {}, ShapeError, "K = 40"),
    "integers": ({Q: torch.ones(64, 64, dtype=torch.int32)}, {}, FormatError, "I32"),
    "doubles": ({Q: torch.ones(64, 64, dtype=torch.float64)}, {}, FormatError, "F64"),
    "a pattern that matches nothing": ({}, {"ignore": ["q_prj"]}, PatternError, "q_proj"),
    "stacked experts in compressed-tensors": (
        {f"{LAYER}mlp.experts.gate_up_proj": torch.ones(2, 64, 64)},
        {"dialect": "compressed-tensors"},
        DialectError,
        "stacked experts",
    ),
    "padding in quark": (
        {Q: torch.ones(64, 40)},
        {"dialect": "quark", "tail": "pad"},
        DialectError,
        "K = 40",
    ),
    "a rule that quark has no word for": (
        {},
        {"dialect": "quark", "rule": "rceil"},
        DialectError,
        "floor, even or ceil",
    ),
    "static activations in quark": (
        {},
        {"dialect": "quark", "activation": "fp8"},
        DialectError,
        "calibration",
    ),
    "a parameter of no linear": ({f"{LAYER}mixer.A": torch.ones(8, 64)}, {}, DialectError, "bare parameter"),
    "packed weights": ({Q: torch.ones(64, 32, dtype=torch.uint8)}, {}, DialectError, "quantised already"),
}


@pytest.mark.parametrize(("change", "settings", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_leaves_nothing(
    save: Save,
    dense: dict[str, torch.Tensor],
    change: dict[str, torch.Tensor],
    settings: dict[str, object],
    error: type[Mxfp4Error],
    message: str,
) -> None:
    source = save({**dense, **change}, config={"model_type": "llama"})
    with pytest.raises(error, match=message):
        quantize_checkpoint(source, source.parent / "a" / "target", config(**settings), max_shard_bytes=1000)
    assert not (source.parent / "a").exists()


def test_all_kept_is_an_error(save: Save) -> None:
    source = save({"lm_head.weight": torch.ones(32, 32)})
    with pytest.raises(ConfigError, match="nothing to quantise"):
        quantize_checkpoint(source, source.parent / "target")


def test_the_index_of_a_bad_value_is_that_of_the_whole_weight(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units_module, "CHUNK_BYTES", 400)
    weight = torch.ones(2, 8, 64).bfloat16()
    weight[1, 5, 33] = math.inf
    source = save({"model.layers.0.mlp.experts.gate_up_proj": weight}, config={"model_type": "other"})
    with pytest.raises(NonFiniteError, match=r"inf at index \[1, 5, 33\]"):
        quantize_checkpoint(source, source.parent / "target")
    weight = torch.ones(2, 64, 8).bfloat16()
    weight[1, 33, 5] = -math.inf
    source = save({"model.layers.0.mlp.experts.gate_up_proj": weight}, config={"model_type": "gpt_oss"})
    with pytest.raises(NonFiniteError, match=r"-inf at index \[1, 33, 5\]"):
        quantize_checkpoint(source, source.parent / "target")
    assert not (source.parent / "target").exists()
    quantize_checkpoint(source, source.parent / "target", config(nonfinite="nan"))
    scales = load_all(source.parent / "target")["model.layers.0.mlp.experts.gate_up_proj_scale"]
    assert (scales == 255).nonzero().tolist() == [[1, 5, 1]]


@pytest.mark.parametrize("place", ["same", "inside", "around"])
def test_source_and_target_are_apart(
    save: Save, dense: dict[str, torch.Tensor], contents: Contents, place: str
) -> None:
    source = save(dense)
    before = contents(source.parent)
    target = {"same": source, "inside": source / "x", "around": source.parent}[place]
    with pytest.raises(OutputError, match="apart"):
        quantize_checkpoint(source, target, force=True)
    assert contents(source.parent) == before


@pytest.mark.parametrize("size", ["5GB", 0, -1, float("nan"), None])
def test_a_size_of_files_that_is_none(
    save: Save, dense: dict[str, torch.Tensor], contents: Contents, size: Any
) -> None:
    source = save(dense)
    before = contents(source.parent)
    with pytest.raises(ConfigError, match="max_shard_bytes"):
        quantize_checkpoint(source, source.parent / "target", max_shard_bytes=size)
    assert contents(source.parent) == before
