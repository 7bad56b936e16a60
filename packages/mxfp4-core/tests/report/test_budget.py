"""What a budget of bytes keeps in high precision: what hurts most for its bytes, alike where parts belong together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from mxfp4_core import Mxfp4Config
from mxfp4_core.cli import app
from mxfp4_core.errors import ConfigError
from mxfp4_core.jobs import plan_checkpoint
from mxfp4_core.report.budget import errors_of_weights, keep_within, read_hurts

SHAPES = {
    "mlp.up_proj": (64, 32),
    "mlp.gate_proj": (64, 32),
    "mlp.down_proj": (32, 64),
    "self_attn.o_proj": (32, 32),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two layers; the later one has larger weights, and so the larger errors."""
    torch.manual_seed(0)
    tensors = {
        f"model.layers.{layer}.{name}.weight": (torch.randn(shape) * (layer + 1)).bfloat16()
        for layer in range(2)
        for name, shape in SHAPES.items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def cost(rows: int, columns: int) -> int:
    return rows * columns * 2 - rows * columns // 2 - rows * columns // 32


def test_what_hurts_most_for_its_bytes_is_kept_first_and_gate_and_up_together(folder: Path) -> None:
    plan = plan_checkpoint(folder)
    hurts = {row.name: 1.0 for row in plan.quantized}
    hurts["model.layers.0.self_attn.o_proj.weight"] = 5.0
    hurts["model.layers.1.mlp.up_proj.weight"] = 6.0
    o_proj, gate_up = cost(32, 32), 2 * cost(64, 32)
    first = keep_within(plan, plan.bytes_after + o_proj, hurts)
    assert first.names == ("model.layers.0.self_attn.o_proj.weight",)
    assert first.config.ignore == ["=model.layers.0.self_attn.o_proj"] and first.added == o_proj
    more = keep_within(plan, plan.bytes_after + o_proj + gate_up, hurts)
    assert {name.rpartition("mlp.")[2] for name in more.names[1:]} == {"up_proj.weight", "gate_proj.weight"}
    assert more.share_left == pytest.approx(5 / 17)
    after = plan_checkpoint(folder, more.config)
    assert after.bytes_after == plan.bytes_after + more.added
    assert not {row.name for row in after.quantized} & {*more.names}


def test_a_smaller_weight_takes_the_room_that_is_left(folder: Path) -> None:
    plan = plan_checkpoint(folder)
    hurts = dict.fromkeys((row.name for row in plan.quantized), 1e-3)
    hurts["model.layers.1.mlp.down_proj.weight"] = 100.0
    kept = keep_within(plan, plan.bytes_after + cost(32, 64) - 1, hurts)
    assert kept.names[0].endswith("o_proj.weight")


def test_the_error_of_the_values_is_measured_where_nobody_says_more(folder: Path) -> None:
    found = errors_of_weights(folder, Mxfp4Config())
    assert found.keys() == {row.name for row in plan_checkpoint(folder).quantized}
    for name in SHAPES:
        ratio = found[f"model.layers.1.{name}.weight"] / found[f"model.layers.0.{name}.weight"]
        assert 2.5 < ratio < 6  # twice the values, four times their squares
    with pytest.raises(ConfigError, match="for mxfp4 alone"):
        errors_of_weights(folder, Mxfp4Config(format="mxfp8"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[]", "list"),
        ("{}", "dict"),
        ('{"a": -1}', "a: -1"),
        ('{"a": NaN}', "nan"),
        ('{"a": true}', "True"),
        ("", "Expecting"),
    ],
)
def test_numbers_that_are_none(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "hurts.json").write_text(text)
    with pytest.raises(ConfigError, match=match):
        read_hurts(tmp_path / "hurts.json")


def test_a_budget_that_is_too_small_and_a_weight_without_a_number(folder: Path) -> None:
    plan = plan_checkpoint(folder)
    with pytest.raises(ConfigError, match="the budget is too small"):
        keep_within(plan, plan.bytes_after - 1, {})
    with pytest.raises(ConfigError, match="it is not known how much"):
        keep_within(plan, plan.bytes_before, {"other": 1.0})


def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    plan = plan_checkpoint(folder)
    hurts = {row.name: float("o_proj" in row.name) for row in plan.quantized}
    (tmp_path / "hurts.json").write_text(json.dumps(hurts))
    budget = str(plan.bytes_after + 2 * cost(32, 32))
    given = ["plan", str(folder), "--budget", budget]
    run = CliRunner().invoke(app, [*given, "--hurts", str(tmp_path / "hurts.json"), "--json"])
    told = json.loads(run.stdout)
    assert sorted(told["config"]["ignore"]) == [f"=model.layers.{layer}.self_attn.o_proj" for layer in (0, 1)]
    assert told["notes"][-1].startswith(
        "the budget keeps 2 weights more; 0.0% of what quantising hurts is left"
    )
    measured = json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)
    assert all("model.layers.1." in pattern for pattern in measured["config"]["ignore"])


@pytest.mark.parametrize(
    ("options", "match"),
    [(["--hurts", "x.json"], "without --budget"), (["--budget", "much"], "--budget cannot be read")],
)
def test_options_that_make_no_sense(options: list[str], match: str, folder: Path) -> None:
    run = CliRunner().invoke(app, ["plan", str(folder), *options])
    assert run.exit_code != 0 and match in f"{run.output}{run.exception}"
