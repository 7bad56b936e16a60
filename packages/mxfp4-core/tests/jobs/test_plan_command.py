"""The plan as a command: for people and for programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from plan_models import moe

from mxfp4_core.cli import main
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.jobs.plan import plan_checkpoint


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["plan", *map(str, arguments)])
        out = capsys.readouterr()
        return int(caught.value.code or 0), out.out, out.err

    @pytest.fixture(autouse=True)
    def wide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")

    def test_equal_layers_share_a_line(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.run(capsys, model, "--ignore", "layers.0.self_attn")
        assert code == 0
        assert "model.layers.{0-1}.mlp.experts.{0-3}.up_proj" in out
        assert "ignored by 'layers.0.self_attn'" in out and "a router or gate, kept by default" in out
        assert "tensors become MXFP4" in out and "peak while loading" in out
        assert len(out.splitlines()) < 30

    def test_full_has_a_line_for_each_tensor(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, out, _ = self.run(capsys, model, "--full")
        assert all(name.removesuffix(".weight") in out for name in moe()[0])

    def test_json_is_the_plan_and_nothing_else(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.run(
            capsys, model, "--json", "--tp", 2, "--rule", "floor", "--backend", "reference"
        )
        data = json.loads(out)
        assert code == 0 and data["profile"] == "floor/even" and data["tp"] == 2
        want = plan_checkpoint(model, Mxfp4Config(rule="floor"), tp=2, backend="reference").to_dict()
        assert data == json.loads(json.dumps(want))
        assert {"name", "quantize", "reason", "pattern", "matched", "shard", "finding"} <= set(
            data["tensors"][0]
        )

    def test_a_finding_is_exit_code_1(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.run(capsys, model, "--tp", 4)
        assert code == 1 and "1 finding:" in out and "PROBLEM" in out
        code, out, _ = self.run(capsys, model, "--tp", 4, "--json")
        assert code == 1 and len(json.loads(out)["findings"]) == 1

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--device", "hip:gfx950"],
            ["--ignore", "nothing_like_it"],
            ["--profile", "quark", "--rule", "even"],
            ["--ep", "0"],
            ["--profile", "x"],
        ],
    )
    def test_misuse_is_exit_code_2(
        self, model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        code, out, err = self.run(capsys, model, *arguments)
        assert code == 2 and "fix:" in err and not out

    def test_options_add_to_the_config_file(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "config.toml").write_text('ignore = ["self_attn"]\ntail = "pad"\n')
        code, out, _ = self.run(
            capsys,
            model,
            "--config",
            tmp_path / "config.toml",
            "--ignore",
            "up_proj",
            "--ignore",
            "gate_proj",
            "--ignore",
            "down_proj",
        )
        assert code == 1 and "nothing to quantise" in out

    def test_another_device_can_be_asked_about(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.run(capsys, model, "--backend", "rocm", "--device", "hip:gfx950")
        assert code == 1 and "install mxfp4-rocm" in out and "hip gfx950" in out

    def test_a_pipe_has_no_edge_to_fold_names_at(
        self, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("COLUMNS", raising=False)
        wide = self.run(capsys, model)[1]
        assert "a linear or expert weight" in wide.splitlines()[1]
        monkeypatch.setenv("COLUMNS", "60")
        assert len(self.run(capsys, model)[1].splitlines()) > len(wide.splitlines())

    def test_it_runs_without_torch(self, model: Path) -> None:
        code = (
            "import sys; sys.modules['torch'] = None\n"
            f"from mxfp4_core.cli import main; main(['plan', {str(model)!r}, '--tp', '2', '--json'])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and json.loads(done.stdout)["findings"] == [], done.stderr
