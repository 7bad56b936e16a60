"""Tests that need a Ray cluster or an S3 server: `nox -s scale` installs both, other sessions do not collect them."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NEEDED = {"test_ray": "ray", "test_bucket": "moto", "test_bucket_errors": "moto"}
collect_ignore = [
    f"{name}.py" for name, package in NEEDED.items() if importlib.util.find_spec(package) is None
]

# Workers on the nodes import the slow units from here, and their torch takes one thread.
UNITS = Path(__file__).parent.parent / "checkpoint"
sys.path[:0] = [str(UNITS), str(Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(UNITS), os.environ.get("PYTHONPATH")]))
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def door() -> Iterator[Any]:
    """Return a door in front of an S3 server, which all S3 clients of this process and its children find."""
    import fsspec
    import s3

    server = s3.started()
    door, proxy = s3.opened(server.get_host_and_port()[1])
    before = dict(os.environ)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": door.url,
    }
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fsspec.filesystem("s3").mkdir(s3.BUCKET)
    yield door
    os.environ.clear()
    os.environ |= before
    proxy.shutdown()
    proxy.server_close()
    server.stop()


@pytest.fixture
def bucket(door: Any) -> Iterator[Any]:
    """Return the file system of an empty bucket that answers as it should."""
    import fsspec
    import s3

    system = fsspec.filesystem("s3", use_listings_cache=False)
    door.faults.clear()
    door.asked.clear()
    yield system
    door.faults.clear()
    system.invalidate_cache()
    for path in system.find(s3.BUCKET):
        system.rm_file(path)
