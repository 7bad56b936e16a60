"""Which of the fast paths runs on a CPU: the compiled kernels where numba is installed, torch operations where not."""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

_LOG = logging.getLogger(__name__)


@cache
def cpu_kernels() -> ModuleType | None:
    """Return the module of the CPU kernels, or None, which is logged once, where numba is not installed."""
    try:
        from mxfp4_core.arithmetic.fast import cpu  # numba takes a second to import
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("numba", "llvmlite"):
            raise
        _LOG.info(
            "mxfp4: the CPU quantizer runs as torch operations, with the same bytes but slower, since %s is not "
            "installed; pip install 'mxfp4-core[cpu]' brings it",
            error.name,
        )
        return None
    return cpu


__all__ = ["cpu_kernels"]
