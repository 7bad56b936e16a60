"""Parts of a model that a ``device_map`` puts on the CPU or the disk, to be computed with on another device.

accelerate finds the tensors of such a part as parameters and buffers, keeps the parameters away and moves the buffers
to the device for good. MXFP4 weights are parked by their modules instead (`mxfp4_core.modules.Parking`), from the first
byte that is loaded, so that accelerate finds none of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mxfp4_core.errors import ConfigError
from mxfp4_core.modules import Mxfp4Module, Parking
from mxfp4_transformers import compat
from mxfp4_transformers.messages import some


def parking_of(device_map: Mapping[str, Any] | None, name: str) -> Parking | None:
    """Return where a weight lies that a ``device_map`` offloads; None where it lies where it is computed with.

    accelerate computes with what is offloaded on the first device that is none of these two, else on the CPU.

    Args:
        device_map: devices by name of a module.
        name: of the weight.
    """
    if device_map is None or (place := compat.place_of(dict(device_map), name)) not in ("cpu", "disk"):
        return None
    main = torch.device(next(iter({*device_map.values()} - {"cpu", "disk"}), "cpu"))
    if place == "cpu":
        return None if main.type == "cpu" else Parking(main)
    return Parking(main, _folder())


def _folder() -> Path:
    """Return where files go that hold weights: the place for temporary files that are too large for memory."""
    told = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    large = Path("/var/tmp")  # /tmp may be memory itself
    return large if not told and os.access(large, os.W_OK) else Path(tempfile.gettempdir())


def check_at_home(model: nn.Module, what: str) -> None:
    """Check that all weights lie where they are computed with, before the model is ``what``.

    Raises:
        ConfigError: some are parked.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, Mxfp4Module) and module.parked is not None
    ]
    if names:
        raise ConfigError(
            f"a model with offloaded weights cannot be {what}",
            seen=some(names),
            rule=f"what is {what} has all of its weights on the devices that compute",
            fix="load it without parts on the CPU or the disk for that",
        )


def check_biases(model: nn.Module) -> None:
    """Check that the biases of MXFP4 modules are there, after transformers has offloaded what it wanted to.

    Raises:
        ConfigError: they are on the disk, and a layout that has them in it cannot be made.
    """
    names = [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, Mxfp4Module) and module.parked is not None
        for name, bias in module.named_biases.items()
        if bias.is_meta and name in module._buffers
    ]
    if names:
        raise ConfigError(
            "biases of quantised modules are on the disk",
            seen=some(names),
            rule="the layout of a weight is made together with its bias, so biases are in memory",
            fix="leave offload_buffers=True out: MXFP4 weights are offloaded without it",
        )


__all__ = ["check_at_home", "check_biases", "parking_of"]
