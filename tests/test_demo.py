"""The demo, shortened: what it promises in its last lines is there, and it replaces nothing unasked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mxfp4_core.jobs.verify import verify_checkpoint

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "qwen3-moe-tiny"


def demo(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "demo/demo.py", str(MODEL), "--output", str(output), *options]
    env = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_the_demo_leaves_a_model_and_a_report_and_replaces_neither(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    first = demo(tmp_path, "--windows", "2", "--tokens", "4")
    assert first.returncode == 0, first.stderr
    assert max(map(len, first.stdout.splitlines()[:-3])) <= 100
    assert re.search(r"perplexity .* \d+\.\d+ ± \d+\.\d+ .* \d+\.\d+ ± \d+\.\d+", first.stdout)
    saved, page = tmp_path / "qwen3-moe-tiny-mxfp4", tmp_path / "qwen3-moe-tiny-report" / "report.html"
    assert f"report: {page}" in first.stdout
    assert f"from_pretrained('{saved}')" in first.stdout.splitlines()[-1]
    assert verify_checkpoint(saved, MODEL).ok
    assert (saved / "tokenizer.json").exists()
    assert page.read_text(encoding="utf-8").startswith("<!")

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = demo(tmp_path)
    assert second.returncode == 1
    assert "OutputError" in second.stderr
    assert "--force" in second.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
