"""Which of the fast paths runs on a CPU: the compiled kernels where numba is installed, torch operations where not."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from types import ModuleType

_LOG = logging.getLogger(__name__)


@cache
def cpu_kernels(name: str = "cpu") -> ModuleType | None:
    """Return a module of CPU kernels, ``cpu`` or ``cpu_formats``; None, logged once, where numba is not installed."""
    try:
        return import_module(f"mxfp4_core.arithmetic.fast.{name}")  # numba takes a second to import
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("numba", "llvmlite"):
            raise
        _say()
        return None


@cache
def _say() -> None:
    _LOG.info(
        "the CPU quantizer runs as torch operations, with the same bytes but slower, since numba is not installed; "
        "in a clone of the repository: pip install './packages/mxfp4-core[cpu]'"
    )


__all__ = ["cpu_kernels"]
