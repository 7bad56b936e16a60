"""The core without its extras: no numba, no typer, no rich."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from mxfp4_core import quantize
from mxfp4_core._extras import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "packages" / "mxfp4-core"

# Raises as an interpreter does in whose environment these modules are not installed.
BLOCKED = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted({m for modules in EXTRAS.values() for m in modules})!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
PROFILES = ("even/even", "floor/away", "quark", "gguf", "torchao-even")


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED + code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def weight() -> torch.Tensor:
    """Return one weight of all magnitudes, the same in every process."""
    mantissa = torch.arange(64 * 256, dtype=torch.int32).reshape(64, 256).mul(2654435761 % 2**31)
    finite = mantissa.bitwise_and(0xBFFF).to(torch.int16)
    return finite.view(torch.bfloat16)


def digest(profile: str) -> str:
    packed = quantize(weight(), profile=profile)
    return hashlib.sha256(packed.codes.numpy().tobytes() + packed.scales.numpy().tobytes()).hexdigest()


def test_the_core_quantises_the_same_bytes_without_them() -> None:
    code = f"""
import hashlib, torch, mxfp4_core
mantissa = torch.arange(64 * 256, dtype=torch.int32).reshape(64, 256).mul(2654435761 % 2**31)
weight = mantissa.bitwise_and(0xBFFF).to(torch.int16).view(torch.bfloat16)
for profile in {PROFILES!r}:
    packed = mxfp4_core.quantize(weight, profile=profile)
    print(hashlib.sha256(packed.codes.numpy().tobytes() + packed.scales.numpy().tobytes()).hexdigest())
    assert packed.dequantize(torch.float32).isfinite().all()
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [digest(profile) for profile in PROFILES]


def test_every_public_name_is_there_without_them() -> None:
    code = f"""
import importlib
for line in open({str(ROOT / "api.txt")!r}).read().split():
    module, name = line.rsplit(".", 1)
    if module.startswith("mxfp4_core") and not module.endswith("testing"):
        getattr(importlib.import_module(module), name)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("from mxfp4_core.cli import main\nmain(['plan', 'folder'])", "cli"),
        ("import runpy\nrunpy.run_module('mxfp4_core', run_name='__main__')", "cli"),
        ("import mxfp4_core.report.measure", "cpu"),
    ],
    ids=["mxfp4", "python -m mxfp4_core", "report"],
)
def test_what_needs_an_extra_says_which(code: str, extra: str) -> None:
    done = run(code)
    assert done.returncode != 0
    for part in ("ConfigError", f"extra '{extra}'", f'pip install "./packages/mxfp4-core[{extra}]"'):
        assert part in done.stderr, done.stderr


def test_the_extras_are_what_the_package_declares() -> None:
    project = tomllib.loads((CORE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, modules in EXTRAS.items():
        declared = {text.partition(">")[0] for text in project["optional-dependencies"][extra]}
        assert declared <= set(modules), extra
    assert {text.partition(">")[0] for text in project["dependencies"]} == {
        "numpy",
        "pydantic",
        "safetensors",
        "torch",
    }


@pytest.mark.parametrize("page", ["README.md", "packages/mxfp4-core/README.md", "docs/backends.md"])
def test_the_install_commands_bring_them(page: str) -> None:
    assert '"./packages/mxfp4-core[cpu,cli]"' in (ROOT / page).read_text(encoding="utf-8")
