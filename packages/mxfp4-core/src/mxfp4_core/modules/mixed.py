"""Inputs of another dtype than the one that a module computes in: under autocast, and above layers that are trained."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from mxfp4_core.backend.device import Device

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


def in_dtype(
    run: Callable[[Tensor], Tensor], x: Tensor, device: Device, prepared: torch.dtype, *, keep: bool = False
) -> Tensor:
    """Return ``run(x)`` for x rounded to the dtype of a module, first as autocast rounds it where that is on.

    Args:
        run: takes x in the dtype for which the module is prepared; inside autocast is off.
        x: floats of any dtype.
        device: for which the module is prepared.
        prepared: the dtype for which it is.
        keep: return the dtype of x, under autocast too.

    Returns:
        The dtype of autocast, which need not be one that the backend computes in, or that of x.
    """
    if (dtype := autocast_dtype(x, device.torch_type)) is not None:
        with torch.autocast(x.device.type, enabled=False):
            return run(x.to(dtype).to(prepared)).to(x.dtype if keep else dtype)
    if x.dtype is not prepared:
        return run(converted(x, prepared)).to(x.dtype)
    return run(x)


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


__all__ = ["autocast_dtype", "converted", "in_dtype"]
