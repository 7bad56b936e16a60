"""Formats by pattern: what overrides say is planned, made, told by the dialects that can, verified and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mxfp4_core import quantize
from mxfp4_core.arithmetic import get_format
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.cli import main
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.registry import read
from mxfp4_core.errors import ConfigError, DialectError, PatternError
from mxfp4_core.jobs import (
    convert_checkpoint,
    dequantize_checkpoint,
    plan_checkpoint,
    quantize_checkpoint,
    verify_checkpoint,
)

Save = Callable[..., Path]
LAYER = "model.layers.0."
SHAPES = {
    f"{LAYER}self_attn.q_proj.weight": (64, 512),
    f"{LAYER}self_attn.k_proj.weight": (64, 512),
    f"{LAYER}self_attn.v_proj.weight": (64, 512),
    f"{LAYER}self_attn.o_proj.weight": (64, 512),
    f"{LAYER}mlp.up_proj.weight": (64, 512),
    f"{LAYER}mlp.gate_proj.weight": (64, 512),
    f"{LAYER}mlp.down_proj.weight": (64, 1024),
    "lm_head.weight": (32, 512),
}
OVERRIDES: list[dict[str, Any]] = [
    {"pattern": "mlp.down_proj", "format": "mxfp8", "activation": "mxfp8"},
    {"pattern": "lm_head", "format": "mxfp8", "rule": "rceil", "keep": False},
    {"pattern": "o_proj", "keep": True},
]
DUAL: dict[str, Any] = {"pattern": "up_proj", "format": "mxfp4-dual"}
GATE: dict[str, Any] = {"pattern": "gate_proj", "format": "mxfp4-dual"}
BECOMES = {"down_proj": ("mxfp8", "floor/even"), "lm_head": ("mxfp8", "rceil/even"), "o_proj": ("", "")}


def config(*more: dict[str, Any], **settings: Any) -> Mxfp4Config:
    return Mxfp4Config.from_dict({"overrides": [*OVERRIDES, *more], **settings})


def becomes(name: str) -> tuple[str, str]:
    return next((each for part, each in BECOMES.items() if part in name), ("mxfp4", "even/even"))


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in SHAPES.items()}


@pytest.fixture
def source(save: Save, weights: dict[str, torch.Tensor]) -> Path:
    return save({**weights, "model.norm.weight": torch.ones(512).bfloat16()}, config={"model_type": "llama"})


def entries_of(folder: Path) -> dict[str, Any]:
    found = read(open_checkpoint(folder))
    assert found is not None
    return dict(found[1].entries)


def test_it_is_planned(source: Path) -> None:
    plan = plan_checkpoint(source, config(DUAL, GATE), backend="reference")
    assert plan.findings == []
    rows = {row.name: row for row in plan.rows}
    for name, shape in SHAPES.items():
        format, profile = ("mxfp4-dual", "ascend") if "up_proj" in name or "gate" in name else becomes(name)
        row = rows[name]
        assert row.decision.quantize is bool(format)
        if format:
            assert (row.decision.format, row.decision.profile) == (
                format,
                get_format(format).resolve(None if profile == "ascend" else profile).name,
            )
            assert row.bytes_after == get_format(format).nbytes(shape)
    modules = {"lm_head", f"{LAYER}mlp.down_proj", f"{LAYER}mlp.gate_up_proj", f"{LAYER}self_attn.qkv_proj"}
    assert {module for fit in plan.fits for module in fit.modules} == modules
    asked = {fit.modules[0]: fit.question for fit in plan.fits}
    assert "mxfp8" in asked["lm_head"] and "mxfp4-dual" in asked[f"{LAYER}mlp.gate_up_proj"]


@pytest.mark.parametrize("dialect", ["mxfp4-core", "compressed-tensors"])
def test_it_is_made_verified_and_read_again(
    source: Path, weights: dict[str, torch.Tensor], tmp_path: Path, dialect: str
) -> None:
    made = tmp_path / "made"
    result = quantize_checkpoint(source, made, config(dialect=dialect))
    assert (result.dialect, result.format) == (dialect, "mxfp4, mxfp8")
    entries = entries_of(made)
    stored_names = [name.removesuffix("_packed") for name in open_checkpoint(made).tensors]
    assert list(entries) == [name for name in stored_names if name in SHAPES and becomes(name)[0]]
    stored = load_file(made / "model.safetensors")
    for name, entry in entries.items():
        format, profile = becomes(name)
        want = quantize(weights[name], format=format, profile=profile)
        assert entry.format == format
        for part, recipe in entry.parts.items():
            assert torch.equal(stored[recipe.names[0]].view(torch.uint8), want.parts[part].view(torch.uint8))
    assert entries[f"{LAYER}mlp.down_proj.weight"].activation == "mxfp8"
    checked = verify_checkpoint(made, source)
    assert checked.ok and checked.format == "mxfp4, mxfp8", checked.findings
    dequantize_checkpoint(made, tmp_path / "wide", dtype="float32")
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    for name in entries:
        format, profile = becomes(name)
        assert torch.equal(wide[name], quantize(weights[name], format=format, profile=profile).dequantize())


def test_dialects_that_can_say_it_are_exact_translations(source: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, tmp_path / "native", config(dialect="mxfp4-core"))
    convert_checkpoint(tmp_path / "native", tmp_path / "ct", "compressed-tensors")
    convert_checkpoint(tmp_path / "ct", tmp_path / "again", "mxfp4-core")
    quantize_checkpoint(source, tmp_path / "straight", config(dialect="compressed-tensors"))
    for one, other in (("native", "again"), ("ct", "straight")):
        for file in ("model.safetensors", "config.json"):
            pair = [(tmp_path / each / file).read_bytes() for each in (one, other)]
            described = [json.loads(text)["quantization_config"] for text in pair] if "json" in file else pair
            if (
                other == "again" and "json" in file
            ):  # groups without activations say that these stay as they are
                described[0]["activation"] = "none"
            assert described[0] == described[1]
    assert verify_checkpoint(tmp_path / "ct", source).ok
    (tmp_path / "ct" / "mxfp4_manifest.json").unlink()
    groups = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]
    kinds = [(each["weights"]["num_bits"], each["targets"]) for each in groups["config_groups"].values()]
    assert (4, ["Linear"]) in kinds and (8, [f"{LAYER}mlp.down_proj"]) in kinds
    assert {name: each.format for name, each in entries_of(tmp_path / "ct").items()} == {
        name: becomes(name)[0] for name in SHAPES if becomes(name)[0]
    }


def test_two_levels_beside_one(source: Path, tmp_path: Path) -> None:
    """What the preferred dialect cannot say goes into ours, where the config leaves the choice."""
    result = quantize_checkpoint(source, tmp_path / "made", config(DUAL, GATE))
    assert result.dialect == "mxfp4-core" and "format mxfp4-dual" in result.why
    assert result.format == "mxfp4, mxfp4-dual, mxfp8"
    assert verify_checkpoint(tmp_path / "made", source).ok
    assert entries_of(tmp_path / "made")[f"{LAYER}mlp.up_proj.weight"].format == "mxfp4-dual"


@pytest.mark.parametrize("dialect", ["quark", "modelopt", "torchao", "auto-round"])
def test_dialects_that_cannot_say_it_refuse(source: Path, tmp_path: Path, dialect: str) -> None:
    with pytest.raises(DialectError, match=r"format mxfp8\n.*that dialect stores mxfp4"):
        quantize_checkpoint(source, tmp_path / "made", config(dialect=dialect))
    assert not (tmp_path / "made").exists()


def test_activations_that_a_dialect_has_no_word_for(source: Path, tmp_path: Path) -> None:
    asked = config(dialect="compressed-tensors", activation="mxfp4")
    with pytest.raises(DialectError, match="activation 'mxfp4' for weights in mxfp8"):
        quantize_checkpoint(source, tmp_path / "made", asked)  # the head has it from the config


def test_by_the_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--as", "mlp.down_proj=mxfp8", "--as", f"={LAYER}self_attn.o_proj=mxfp8", "--models", "none"]
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(source), *options])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "7 of 9 tensors become 5 MXFP4, 2 MXFP8" in told and "mxfp8 floor/even" in told
    with pytest.raises(SystemExit) as ended:
        main(["quantize", str(source), str(tmp_path / "made"), *options])
    assert ended.value.code == 0
    assert "7 weights in MXFP4, MXFP8" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(source), "--as", "mlp.down_proj:mxfp8"])
    assert ended.value.code == 2
    assert "PATTERN=FORMAT" in capsys.readouterr().err


def test_a_fused_module_has_one_format(source: Path) -> None:
    with pytest.raises(
        PatternError, match=r"k_proj, v_proj quantised to mxfp4 .*q_proj quantised to mxfp8"
    ) as e:
        plan_checkpoint(
            source, Mxfp4Config.from_dict({"overrides": [{"pattern": "q_proj", "format": "mxfp8"}]})
        )
    assert "qkv_proj" in e.value.what


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"overrides": [{"pattern": "a", "format": "mxfp9"}]}, "mxfp8"),
        ({"overrides": [{"pattern": "a", "format": "mxfp8", "keep": True}]}, "has no rule"),
        ({"overrides": [{"pattern": "a", "format": "mxfp8", "profile": "quark"}]}, "profiles of that format"),
        ({"format": "mxfp8", "overrides": [{"pattern": "a", "profile": "quark"}]}, "profiles of that format"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Mxfp4Config.from_dict(settings)


def test_what_an_override_inherits() -> None:
    def profile(config: dict[str, Any], **own: Any) -> str:
        made = Mxfp4Config.from_dict({**config, "overrides": [{"pattern": "a", **own}]})
        return made.profile_for(made.overrides[0])

    assert profile({"profile": "quark"}, format="mxfp8") == "floor/even"  # a profile is one of a format
    assert profile({"rule": "rceil"}, format="mxfp8") == "rceil/even"
    assert profile({"format": "mxfp8"}, format="mxfp4") == "even/even"
    assert profile({"format": "mxfp8"}, format="mxfp4", profile="quark") == "quark"
    with pytest.raises(ConfigError, match="mxfp8"):
        profile({"rule": "even"}, format="mxfp8")


@pytest.mark.parametrize(
    ("formats", "says"),
    [
        ({}, "list of groups"),
        ([{"format": "mxfp9", "weights": []}], "mxfp9"),
        ([{"format": 7, "weights": []}], "each is a name"),
        ([{"format": "mxfp8", "weights": [f"{LAYER}mlp.up_proj.weight"]}], "codes"),
        ([{"format": "mxfp8", "weights": ["model.norm.weight"]}], "no pair"),
        ([{"format": "mxfp8", "weights": ["nobody.weight"]}], "no pair"),
        ([{"format": "mxfp8", "weights": ["a.weight", "a.weight"]}], "two groups"),
        (None, "format mxfp4 is"),
    ],
)
def test_a_description_that_is_wrong(source: Path, tmp_path: Path, formats: object, says: str) -> None:
    quantize_checkpoint(source, tmp_path / "made", config(dialect="mxfp4-core"))
    path = tmp_path / "made" / "config.json"
    described = json.loads(path.read_text())
    described["quantization_config"]["formats"] = formats
    path.write_text(json.dumps(described))
    with pytest.raises(DialectError, match=says):
        read(open_checkpoint(tmp_path / "made"))


def test_a_level_that_nothing_tells_is_no_tensor_of_the_model(source: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, tmp_path / "made", config(DUAL, GATE))
    path = tmp_path / "made" / "config.json"
    described = json.loads(path.read_text())
    groups = described["quantization_config"]["formats"]
    described["quantization_config"]["formats"] = [each for each in groups if each["format"] == "mxfp8"]
    path.write_text(json.dumps(described))
    with pytest.raises(DialectError, match="as mxfp4-dual has it"):
        read(open_checkpoint(tmp_path / "made"))
