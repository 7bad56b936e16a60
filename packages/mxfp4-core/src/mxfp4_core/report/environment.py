"""Where and with what a report was made: enough to repeat it, nothing about the person."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mxfp4_core.backend.device import cpu

_PACKAGES = ("mxfp4-core", "torch", "numpy", "numba", "safetensors")


def environment(command: Sequence[str] = ()) -> dict[str, Any]:
    """Return date, command, machine and versions as plain JSON data.

    Args:
        command: the command line that asked for the report; empty when a program did.
    """
    device = cpu()
    return {
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": shlex.join(command),
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "processor": device.name or device.arch,
            "cpus": os.cpu_count(),
            "memory_bytes": device.memory_bytes,
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


__all__ = ["environment"]
