"""What the table of families keeps, on the way that a person takes: plan, quantize, load by an engine, verify."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_models import write

from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.cli import main
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects import read
from mxfp4_core.errors import ShapeError
from mxfp4_core.jobs import plan_checkpoint, quantize_checkpoint, verify_checkpoint
from mxfp4_core.loader import EngineNames
from mxfp4_core.naming.families import TOWERS

Save = Callable[..., Path]
DEEPSEEK: dict[str, Any] = {"model_type": "deepseek_v3", "num_hidden_layers": 2}
ATTENTION = [
    f"model.layers.{layer}.self_attn.{part}" for layer in range(2) for part in ("kv_b_proj", "o_proj")
]
MLP = [f"model.layers.{layer}.mlp.{part}" for layer in range(2) for part in ("up_proj", "gate_proj")]
GEMMA = {
    "model_type": "gemma3",
    "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 1},
    "vision_config": {"model_type": "siglip_vision_model", "intermediate_size": 4304},
}
SEEN = "vision_tower.vision_model.encoder.layers.0.mlp.fc2"  # SigLIP So400m: K is 4304, no multiple of 32
TOLD = "language_model.model.layers.0.mlp.down_proj"


@pytest.fixture
def deepseek(save: Save) -> Path:
    return save(
        {f"{name}.weight": torch.randn(64, 64).bfloat16() for name in ATTENTION + MLP}, config=DEEPSEEK
    )


def test_a_plan_tells_the_row_its_source_and_the_way_out(deepseek: Path) -> None:
    found = plan_checkpoint(deepseek, models="none")
    assert {row.name.removesuffix(".weight") for row in found.quantized} == {*MLP}
    (note,) = [note for note in found.notes if "table of families" in note]
    assert note.startswith(
        "4 tensors of a deepseek_v3 stay in high precision by the table of families (SGLang 0.5.23"
    )
    assert "model.layers.{0-1}.self_attn.o_proj; --no-family-defaults quantises them" in note
    assert all("quark.py" in row.decision.reason for row in found.rows if not row.decision.quantize)
    assert found.advised == []


def test_without_the_defaults_a_plan_advises_them(deepseek: Path) -> None:
    found = plan_checkpoint(deepseek, Mxfp4Config(family_defaults=False), models="none")
    assert len(found.quantized) == 8 and found.advised == ["self_attn"]
    assert not any("table of families" in note for note in found.notes)
    assert any("--ignore self_attn" in note for note in found.notes)


@pytest.mark.parametrize("dialect", ["compressed-tensors", "mxfp4-core", "quark"])
@pytest.mark.parametrize("on", [True, False])
def test_a_folder_holds_what_was_decided_and_every_reader_goes_by_that(
    deepseek: Path, tmp_path: Path, dialect: str, on: bool
) -> None:
    config = Mxfp4Config(family_defaults=on, dialect=dialect)
    result = quantize_checkpoint(deepseek, tmp_path / "q", config, models="none")
    assert any("table of families" in note for note in result.notes) is on
    found = read(open_checkpoint(tmp_path / "q"))
    assert found is not None
    held = {*MLP} if on else {*MLP, *ATTENTION}
    assert {name.removesuffix(".weight") for name in found[1].entries} == held
    described = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    names = EngineNames(Mxfp4Config(), model_config=DEEPSEEK, folder=tmp_path / "q", stored=True)
    assert {name for name in ATTENTION + MLP if names.decide(name).quantize} == held
    assert ("family_defaults" in described) is (dialect == "mxfp4-core" and not on)
    checked = verify_checkpoint(tmp_path / "q", deepseek, models="none")
    assert checked.findings == []


def test_the_arithmetic_of_an_override_is_that_of_a_folder_though_the_family_would_keep_it(
    deepseek: Path, tmp_path: Path
) -> None:
    """A folder that was written when nothing kept it, or where somebody forced it, is read by its own overrides."""
    override = {"pattern": "self_attn", "rule": "rceil"}
    config = Mxfp4Config.from_dict(
        {"overrides": [override], "family_defaults": False, "dialect": "mxfp4-core"}
    )
    quantize_checkpoint(deepseek, tmp_path / "q", config, models="none")
    file = tmp_path / "q" / "config.json"  # as a release wrote it that knew no such key
    data = json.loads(file.read_text())
    data["quantization_config"].pop("family_defaults")
    file.write_text(json.dumps(data))
    (tmp_path / "q" / "mxfp4_manifest.json").unlink()
    found = verify_checkpoint(tmp_path / "q", deepseek, models="none").findings
    assert [each.check for each in found] == ["manifest"]  # that it is gone, and no weight


def test_engines_decide_alike_in_their_own_names(deepseek: Path) -> None:
    names = EngineNames(Mxfp4Config(), model_config=DEEPSEEK, folder=deepseek)
    attention = names.decide("model.layers.1.self_attn.kv_b_proj")
    assert not attention.quantize and "SGLang 0.5.23" in attention.reason
    assert names.decide("model.layers.1.mlp.gate_up_proj").quantize
    off = EngineNames(Mxfp4Config(family_defaults=False), model_config=DEEPSEEK, folder=deepseek)
    assert off.decide("model.layers.1.self_attn.kv_b_proj").quantize
    seen = EngineNames(Mxfp4Config(), model_config=GEMMA).decide(
        "vision_tower.encoder.layers.0.self_attn.qkv_proj"
    )
    assert not seen.quantize and "vision tower" in seen.reason


def test_towers_whose_sizes_no_block_divides_ask_for_no_option(tmp_path: Path) -> None:
    model = write(tmp_path / "m", {f"{SEEN}.weight": (1152, 4304), f"{TOLD}.weight": (64, 128)}, GEMMA)
    found = plan_checkpoint(model, models="none")
    assert found.findings == [] and [row.name for row in found.quantized] == [f"{TOLD}.weight"]
    assert any(TOWERS in note for note in found.notes)
    with pytest.raises(ShapeError):
        quantize_checkpoint(
            model, tmp_path / "q", Mxfp4Config(family_defaults=False), models="none", dry_run=True
        )


def test_the_command_line_switches_them_off_and_on(
    deepseek: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "off.toml").write_text("family_defaults = false\n")

    def quantized(*arguments: str) -> int:
        with pytest.raises(SystemExit) as caught:
            main(["plan", str(deepseek), "--models", "none", "--json", *arguments])
        assert not caught.value.code
        return int(json.loads(capsys.readouterr().out)["totals"]["quantized"])

    off = ("--config", str(tmp_path / "off.toml"))
    assert [quantized(), quantized("--no-family-defaults"), quantized(*off)] == [4, 8, 8]
    assert quantized(*off, "--family-defaults") == 4
