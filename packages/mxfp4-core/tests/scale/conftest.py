"""Tests that need a Ray cluster or an S3 server: `nox -s scale` installs both, other sessions do not collect them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

NEEDED = {"test_ray": "ray", "test_bucket": "moto", "test_bucket_errors": "moto"}
collect_ignore = [
    f"{name}.py" for name, package in NEEDED.items() if importlib.util.find_spec(package) is None
]

# Workers on the nodes import the slow units from here, and their torch takes one thread.
UNITS = Path(__file__).parent.parent / "checkpoint"
sys.path.insert(0, str(UNITS))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(UNITS), os.environ.get("PYTHONPATH")]))
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"
