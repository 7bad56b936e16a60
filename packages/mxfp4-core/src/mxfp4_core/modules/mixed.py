"""What autocast makes of the input and of the result of a module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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


__all__ = ["autocast_dtype", "without_autocast"]
