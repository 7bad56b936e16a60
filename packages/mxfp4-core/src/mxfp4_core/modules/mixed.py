"""Inputs of another dtype than the one that a module computes in: under autocast, and above layers that are trained."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

_LOG = logging.getLogger("mxfp4_core.modules")
_FLOATS: Final = frozenset({torch.bfloat16, torch.float16, torch.float32})


def autocast_dtype(x: Tensor, device: str) -> torch.dtype | None:
    """Return the dtype that autocast gives an input like x, or None where it leaves x alone, or is off.

    Args:
        x: what a module is called with.
        device: the type of its device; to ask x for it would cost every call more than all of this does.
    """
    if not torch.is_autocast_enabled(device) or not x.is_floating_point() or x.dtype is torch.float64:
        return None
    return torch.get_autocast_dtype(device)


def without_autocast(
    run: Callable[[Tensor], Tensor], x: Tensor, autocast: torch.dtype, prepared: torch.dtype
) -> Tensor:
    """Return ``run(x)`` for x rounded as autocast rounds it; inside, the module's own dtype holds.

    Args:
        run: takes x in the dtype for which the module is prepared.
        x: floats of any dtype.
        autocast: the dtype of autocast, which need not be one that the backend computes in.
        prepared: the dtype for which the module is prepared.
    """
    with torch.autocast(x.device.type, enabled=False):
        return run(x.to(autocast).to(prepared))


def converted(x: Tensor, prepared: torch.dtype) -> Tensor:
    """Return x in the dtype of a module, aloud; what is no float of 16 or 32 bits is returned as it is.

    Whoever trains adapters holds everything around them in float32 (peft's ``prepare_model_for_kbit_training``), also
    above weights whose backend computes in bfloat16 only.
    """
    if x.dtype not in _FLOATS:
        return x
    _say(str(x.dtype), str(prepared))
    return x.to(prepared)


@functools.lru_cache(maxsize=64)
def _say(given: str, prepared: str) -> None:
    _LOG.warning(
        "MXFP4 modules that are prepared for %s get %s: they round it, and return that", prepared, given
    )


__all__ = ["autocast_dtype", "converted", "without_autocast"]
