"""A model provider that lives outside this repository, made of what its page shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

PAGE = Path(__file__).resolve().parents[4] / "docs" / "add-a-model-provider.md"


def from_the_page(name: str) -> str:
    """Return the source that the page shows under the name of a file."""
    (source,) = re.findall(
        rf"```\w+\n# {re.escape(name)}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    return str(source)


@pytest.fixture
def somewhere(tmp_path: Path) -> Path:
    """Install the package, with the metadata that pip would write."""
    for name in ("toy_models.py", "test_toy_models.py"):
        (tmp_path / name).write_text(from_the_page(name))
    info = tmp_path / "toy_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-models\nVersion: 1.0\n")
    (entry,) = re.findall(r"(\[project\.entry-points.*)", from_the_page("pyproject.toml"), re.DOTALL)
    entry = re.sub(r"\[project\.entry-points\.\"(.*)\"\]", r"[\1]", entry).replace('"', "")
    (info / "entry_points.txt").write_text(entry)
    return tmp_path


def run(where: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = [str(where), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTEST_ADDOPTS": ""}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_foreign_provider_passes_the_suite(somewhere: Path) -> None:
    done = run(somewhere, "pytest", "-q", "-p", "no:cacheprovider", "test_toy_models.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d\d passed", done.stdout, re.MULTILINE), done.stdout


def test_the_commands_ask_it(somewhere: Path) -> None:
    model = somewhere / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "toy", "width": 64, "words": 96}))
    shapes = {"codebook.weight": (96, 64), "mix.weight": (64, 128), "speak.weight": (96, 64)}
    save_file(
        {name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()},
        model / "model.safetensors",
    )
    done = run(somewhere, "mxfp4_core", "plan", str(model), "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["kinds"] == "kinds by toy-models 1.0: Toy"
    assert {row["name"]: row["quantize"] for row in plan["tensors"]} == {
        "codebook.weight": False,
        "mix.weight": True,
        "speak.weight": False,
    }
    assert next(row["shape"] for row in plan["tensors"] if row["name"] == "mix.weight") == [128, 64]
    by_names = json.loads(
        run(somewhere, "mxfp4_core", "plan", str(model), "--json", "--models", "none").stdout
    )
    assert (
        by_names["totals"]["quantized"] == 2
    )  # a codebook is known by its name, too; a head called `speak` is not
