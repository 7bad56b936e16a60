"""The jobs on whatever folder people have: what is copied, what is left behind and listed, what a pipeline is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.cli import main
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import CheckpointError, FormatError, PatternError
from mxfp4_core.jobs import (
    convert_checkpoint,
    plan_checkpoint,
    plan_pipeline,
    quantize_checkpoint,
    verify_checkpoint,
)

Save = Callable[..., Path]
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def source(save: Save) -> Path:
    folder = save(
        {UP: torch.randn(64, 64).bfloat16()}, config={"model_type": "llama", "limit": [0.0, float("inf")]}
    )
    (folder / "2_Dense").mkdir()
    save_file({"linear.weight": torch.ones(8, 64)}, folder / "2_Dense" / "model.safetensors")
    save_file({"mtp.up_proj.weight": torch.ones(8, 64)}, folder / "mtp.safetensors")
    (folder / "voices.pt").write_bytes(b"\x80\x02.")
    return folder


COPIED = ["2_Dense/model.safetensors", "mtp.safetensors"]
LEFT = {"voices.pt": "a pickle, which is never opened"}


def test_nothing_is_left_behind_without_a_word(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, other = source.parent / "target", source.parent / "other"
    plan = plan_checkpoint(source)
    assert (list(plan.copied), dict(plan.left)) == (COPIED, LEFT)
    result = quantize_checkpoint(source, target)
    assert (list(result.copied), dict(result.left)) == (COPIED, LEFT)
    json.dumps([plan.to_dict(), result.to_dict()])
    for name in COPIED:
        assert (target / name).read_bytes() == (source / name).read_bytes()
    manifest = json.loads((target / "mxfp4_manifest.json").read_text())
    assert manifest["left_behind"] == LEFT
    assert set(COPIED) < set(manifest["files"])
    assert verify_checkpoint(target, source).ok
    assert open_checkpoint(target).config["limit"] == [0.0, float("inf")]
    # Programs that read all weights of a folder without an index would take mtp.safetensors for a part of the model.
    assert (target / "model.safetensors.index.json").exists()
    assert len(open_checkpoint(target).tensors) == 2
    convert_checkpoint(target, other, "quark")
    assert (other / "mtp.safetensors").exists()
    for command in (
        ["plan", str(source)],
        ["quantize", str(source), str(source.parent / "again"), "--quiet"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        out = capsys.readouterr().out
        assert ended.value.code == 0
        assert "copied as they are: 2_Dense/model.safetensors, mtp.safetensors\n" in out
        assert "left behind (a pickle, which is never opened): voices.pt\n" in out


def test_a_damaged_copy_is_found(source: Path) -> None:
    quantize_checkpoint(source, target := source.parent / "target")
    with open(target / "mtp.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert [found.where for found in verify_checkpoint(target).findings] == ["mtp.safetensors"]


def test_buffers_of_integers_are_kept(save: Save) -> None:
    buffers = {
        "relative_position_index": torch.arange(64 * 64).reshape(64, 64),
        "attn.mask": torch.ones(64, 64, dtype=torch.bool),
    }
    source = save({UP: torch.randn(64, 64), **buffers})
    result = quantize_checkpoint(source, source.parent / "target")
    assert (result.quantized, result.kept) == (1, 2)
    written = open_checkpoint(source.parent / "target")
    assert all(torch.equal(written.load(name), value) for name, value in buffers.items())
    rows = {row.name: row for row in plan_checkpoint(source).rows}
    assert rows["relative_position_index"].decision.reason == "a buffer of I64, no weight"
    with pytest.raises(FormatError, match="I64"):
        named = Mxfp4Config(targets=["relative_position_index", "up_proj"])
        quantize_checkpoint(source, source.parent / "other", named)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    for name, tensors in {
        "transformer": {"blocks.0.attn.to_q.weight": torch.ones(64, 64)},
        "vae": {"conv_in.weight": torch.ones(4, 4, 3, 3)},
    }.items():
        (tmp_path / "pipe" / name).mkdir(parents=True)
        save_file(tensors, tmp_path / "pipe" / name / "diffusion_pytorch_model.safetensors")
    (tmp_path / "pipe" / "scheduler").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    return tmp_path / "pipe"


def test_a_pipeline_is_planned_component_by_component(
    pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan_pipeline(pipeline)
    assert {name: len(plan.quantized) for name, plan in found.plans.items()} == {"transformer": 1, "vae": 0}
    assert found.findings == []
    assert plan_pipeline(pipeline, Mxfp4Config(targets=["to_q"])).findings == []
    with pytest.raises(PatternError, match="match nothing"):
        plan_pipeline(pipeline, Mxfp4Config(ignore=["nowhere"]))
    for arguments, told in (([], "component transformer:"), (["--json"], '"components": {')):
        with pytest.raises(SystemExit) as ended:
            main(["plan", str(pipeline), *arguments])
        assert ended.value.code == 0
        assert told in capsys.readouterr().out
    (pipeline / "vae" / "diffusion_pytorch_model.safetensors").write_text("damaged")
    broken = plan_pipeline(pipeline)
    assert list(broken.errors) == ["vae"]
    assert broken.findings[0].startswith("vae: cannot read")
    with pytest.raises(CheckpointError, match="a pipeline of several models"):
        quantize_checkpoint(pipeline, pipeline.parent / "target")


def test_a_pipeline_without_weights(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no folder with safetensors"):
        plan_pipeline(tmp_path)
