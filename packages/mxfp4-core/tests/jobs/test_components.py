"""Components of a pipeline of diffusers: files under its names, in a dialect that it loads, and a line that is true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mxfp4_core import Mxfp4Config, dialects
from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.jobs import convert_checkpoint, quantize_checkpoint
from mxfp4_core.modules import describe_parameters
from mxfp4_core.naming import ModelView, Resolver

STEM = "diffusion_pytorch_model"


@pytest.fixture
def component(tmp_path: Path) -> Path:
    folder = tmp_path / "transformer"
    folder.mkdir()
    weights = {f"blocks.{n}.ff.weight": torch.randn(64, 64).bfloat16() for n in range(4)}
    save_file(weights, folder / f"{STEM}.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "ToyTransformer2DModel"}))
    return folder


def test_one_file_or_several_have_the_names_that_diffusers_looks_for(component: Path, tmp_path: Path) -> None:
    one = quantize_checkpoint(component, tmp_path / "one", models="none")
    assert one.files == (f"{STEM}.safetensors",) and one.dialect == "mxfp4-core"
    more = quantize_checkpoint(component, tmp_path / "more", models="none", max_shard_bytes=3000)
    assert more.files == tuple(f"{STEM}-{n:05}-of-00004.safetensors" for n in range(1, 5))
    assert (tmp_path / "more" / f"{STEM}.safetensors.index.json").is_file()
    assert len(open_checkpoint(tmp_path / "more").tensors) == 8
    again = convert_checkpoint(tmp_path / "more", tmp_path / "again", "compressed-tensors")
    assert again.files == (f"{STEM}.safetensors",)


@pytest.mark.parametrize(
    ("dialect", "line"),
    [
        ("mxfp4-core", "diffusers.ToyTransformer2DModel.from_pretrained("),
        ("quark", "diffusers.ToyTransformer2DModel.from_pretrained("),
        ("compressed-tensors", "diffusers.ToyTransformer2DModel.from_pretrained("),
    ],
)
def test_the_line_that_loads_it(dialect: str, line: str, component: Path, tmp_path: Path) -> None:
    config = Mxfp4Config(dialect=dialect, profile="quark")
    assert line in quantize_checkpoint(component, tmp_path / "made", config, models="none").load


def test_a_dialect_that_diffusers_cannot_load_is_converted_first(
    component: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(dialects.get("quark")), "components", False)
    config = Mxfp4Config(dialect="quark", profile="quark")
    made = quantize_checkpoint(component, tmp_path / "made", config, models="none")
    assert made.load.startswith("mxfp4 convert ") and "--to mxfp4-core" in made.load


def test_what_a_library_keeps_by_default_is_kept_unless_the_config_says_otherwise() -> None:
    model = torch.nn.ModuleDict({"taken": torch.nn.Linear(32, 32), "other": torch.nn.Linear(32, 32)})
    parameters = describe_parameters(model, default=lambda path: "it is sensitive" if path == "taken" else "")
    view = ModelView("toys 1", "Toy", parameters)

    def decided(config: Mxfp4Config) -> tuple[bool, str]:
        found = Resolver.for_model(config, {}, view=view).decide("taken.weight", (32, 32))
        return found.quantize, found.reason

    assert decided(Mxfp4Config()) == (False, "it is sensitive, kept by default")
    forced = Mxfp4Config.from_dict({"overrides": [{"pattern": "taken", "keep": False}]})
    assert decided(forced)[0] and decided(Mxfp4Config(keep_defaults=False))[0]
