"""tools/linked.py finds the packages and their entry points where nothing is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_entry_points_are_found_without_installing(tmp_path: Path) -> None:
    (tmp_path / "shows.py").write_text(
        "import sys\n"
        "from importlib.metadata import entry_points, version\n"
        "print(version('mxfp4-core'), *sorted(e.value for e in entry_points(group='mxfp4.backends')))\n"
    )
    # -S: the interpreter starts without site-packages, so that an installed copy cannot answer in its place.
    code = (
        "import os, subprocess, sys; sys.path.insert(0, 'tools'); import linked;"
        "env = {**os.environ, **linked.environment()};"
        f"sys.exit(subprocess.run([sys.executable, '-S', {str(tmp_path / 'shows.py')!r}], env=env).returncode)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("0.1.0 "), run.stdout
    assert "mxfp4_core.backends.reference:backend" in run.stdout


def test_without_arguments_it_says_how_to_use_it() -> None:
    run = subprocess.run(
        [sys.executable, "tools/linked.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "usage: python3 tools/linked.py MODULE" in run.stderr
