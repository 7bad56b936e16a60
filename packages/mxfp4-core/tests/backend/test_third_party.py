"""A backend that lives outside this repository, and the pytest plug-in that judges it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[4] / "docs" / "add-a-backend.md"


def from_the_page(name: str) -> str:
    """Return the source that the page shows under the name of a file."""
    (source,) = re.findall(
        rf"```python\n# {re.escape(name)}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    return str(source)


@pytest.fixture
def somewhere(tmp_path: Path) -> Path:
    return write(tmp_path, "cpu")


def write(where: Path, device: str) -> Path:
    """Install the package for a type of device, with the metadata that pip would write."""
    for name in ("toy_mxfp4.py", "test_toy.py"):
        (where / name).write_text(from_the_page(name).replace('"cpu"', f'"{device}"'))
    info = where / "toy_mxfp4-0.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-mxfp4\nVersion: 0.7\n")
    (info / "entry_points.txt").write_text("[mxfp4.backends]\ntoy = toy_mxfp4:backend\n")
    (where / "conftest.py").write_text("import torch\n\ntorch.set_num_threads(1)\n")
    return where


def run(where: Path, *options: str) -> tuple[int, dict[str, int], str]:
    """Run pytest in another process; return its exit code, the counts of its last line, and its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *options]
    path = [str(where), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=900)
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    counts = {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|skipped|deselected|error)", summary)
    }
    return done.returncode, counts, done.stdout + done.stderr


def test_a_foreign_backend_passes_the_suite(somewhere: Path) -> None:
    code, counts, output = run(somewhere, "--require-backend", "toy", "test_toy.py")
    assert code == 0 and set(counts) == {"passed"} and counts["passed"] > 100, output


def test_a_missing_device_is_skipped_or_is_a_failure(tmp_path: Path) -> None:
    somewhere = write(tmp_path, "cuda-of-the-future")
    chosen = "-k", "linear_the_same_twice or ordinary_problem or misaligned"
    code, counts, output = run(somewhere, "test_toy.py", *chosen)
    # verdicts and layouts are tested without the device
    assert code == 0 and counts["skipped"] == 1 and counts["passed"] >= 4, output
    code, counts, output = run(somewhere, "test_toy.py", "--require-backend", "toy", *chosen)
    assert code == 1 and counts["error"] == 1 and "skipped" not in counts, output
    assert "--require-backend toy allows no skip" in output and "is no cuda-of-the-future" in output


def test_a_required_backend_that_was_not_tested_is_a_failure(somewhere: Path) -> None:
    (somewhere / "test_other.py").write_text("def test_it():\n    pass\n")
    code, counts, output = run(somewhere, "test_other.py", "--require-backend", "toy")
    assert code == 1 and counts["passed"] == 1, output
    assert "--require-backend toy: no test of its suite passed" in output


def test_the_shipped_file_tests_any_backend_by_name(somewhere: Path) -> None:
    options = "--pyargs", "mxfp4_core.testing.test_backend", "-k", "test_members or same_twice"
    code, counts, output = run(somewhere, *options, "--mxfp4-backend", "toy", "--require-backend", "toy")
    assert code == 0 and counts["passed"] == 3, output
    code, _, output = run(somewhere, *options, "--mxfp4-backend", "toi")
    assert code == 1 and "no distribution registers the backend 'toi'" in output


def test_pytest_starts_without_torch(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import sys\n\n\ndef pytest_sessionfinish():\n    print('HEAVY', {'torch', 'numba'} & set(sys.modules))\n"
    )
    (tmp_path / "test_it.py").write_text(
        "def test_it(request):\n    request.config.getoption('--require-backend')\n"
    )
    code, _, output = run(tmp_path, "-s", "test_it.py")
    assert code == 0 and "HEAVY set()" in output, output
