"""The dialect of the page, installed from a folder outside of this repository: its suite, and a round trip."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[4] / "docs" / "add-a-dialect.md"
Save = Callable[..., Path]


@pytest.fixture
def somewhere(tmp_path: Path) -> Path:
    """Write down what the page shows, with the metadata that pip would write."""
    text = PAGE.read_text(encoding="utf-8")
    folder = tmp_path / "acme"
    info = folder / "acme_mxfp4-1.0.dist-info"
    info.mkdir(parents=True)
    for name in ("acme_dialect.py", "test_acme_dialect.py"):
        (source,) = re.findall(rf"```python\n# {re.escape(name)}\n(.*?)```", text, re.DOTALL)
        (folder / name).write_text(source)
    (points,) = re.findall(r"```toml\n\[project\.entry-points\.\"(.*?)```", text, re.DOTALL)
    group, line = points.strip().split('"]\n')
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-mxfp4\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}\n")
    return folder


def run(where: Path, *command: str) -> str:
    path = [str(where), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_passes_its_suite(somewhere: Path) -> None:
    out = run(somewhere, "pytest", "-q", "-p", "no:cacheprovider", "test_acme_dialect.py")
    assert re.search(r"\n\d+ passed", out) and "skipped" not in out


def test_the_commands_take_it(somewhere: Path, save: Save, dense: dict[str, torch.Tensor]) -> None:
    source = save(dense, config={"model_type": "llama"})
    steps = [source.parent / name for name in ("native", "acme-format", "back")]
    run(
        somewhere,
        "mxfp4_core",
        "quantize",
        str(source),
        str(steps[0]),
        "--dialect",
        "mxfp4-core",
        "--quiet",
    )
    out = run(somewhere, "mxfp4_core", "convert", str(steps[0]), str(steps[1]), "--to", "acme", "--quiet")
    assert "acme run" in out
    out = run(somewhere, "mxfp4_core", "verify", str(steps[1]), "--source", str(source))
    assert "7 MXFP4 weights, acme, profile even/even: good" in out
    run(somewhere, "mxfp4_core", "convert", str(steps[1]), str(steps[2]), "--to", "mxfp4-core", "--quiet")
    first, last = (step / "model.safetensors" for step in (steps[0], steps[2]))
    assert first.read_bytes() == last.read_bytes()
    help_text = run(somewhere, "mxfp4_core", "convert", "--help")
    assert "acme" in help_text
