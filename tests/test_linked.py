"""tools/linked.py finds the packages and their entry points where nothing is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import linked

ROOT = Path(__file__).resolve().parent.parent


def test_entry_points_are_found_without_installing(tmp_path: Path) -> None:
    (tmp_path / "shows.py").write_text(
        "import sys\n"
        "from importlib.metadata import entry_points, version\n"
        "print(version('mxfp4-core'), *sorted(e.value for e in entry_points(group='mxfp4.backends')))\n"
    )
    # -S: the interpreter starts without site-packages, so no installed copy can answer.
    command = [sys.executable, "-S", str(tmp_path / "shows.py")]
    env = {**os.environ, **linked.environment()}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("0.1.0 "), run.stdout
    assert "mxfp4_core.backend.reference.backend:backend" in run.stdout


def test_a_script_runs_as_well_as_a_module(tmp_path: Path) -> None:
    script = tmp_path / "shows.py"
    script.write_text("import sys, mxfp4_core\nprint(mxfp4_core.__file__, *sys.argv[1:])\n")
    command = [sys.executable, "tools/linked.py", str(script), "--help"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    core = ROOT / "packages" / "mxfp4-core" / "src" / "mxfp4_core" / "__init__.py"
    assert run.stdout == f"{core} --help\n", run.stderr


def test_without_arguments_it_says_how_to_use_it() -> None:
    run = subprocess.run(
        [sys.executable, "tools/linked.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "usage: python3 tools/linked.py MODULE|FILE.py" in run.stderr
