"""How activations are quantised where nobody says it: as the backends that are made for a device usually do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from mxfp4_core.backend.answers import No
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.registry import installed
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.config.words import Activation

if TYPE_CHECKING:
    from mxfp4_core.dialects.base import Contents


def usual_activation(backend: str | None, devices: Iterable[Device]) -> Activation:
    """Return ``auto`` where a backend quantises activations unless it is told not to, else ``none``.

    Args:
        backend: the one that is named; None for those that may be chosen unnamed on one of the devices.
        devices: where the model runs.
    """
    places = {place for device in devices for place in (device.type, f"{device.type}:{device.arch}")}
    for name, plugin in installed().items():
        if backend not in (None, name) or isinstance(loaded := plugin.load(), No):
            continue
        word: Activation = getattr(loaded, "usual_activation", "none")  # a backend need not be a subclass
        if word != "none" and (backend is not None or places & loaded.automatic_on):
            return word
    return "none"


def settled(config: Mxfp4Config, devices: Iterable[Device | str]) -> Mxfp4Config:
    """Return the config with which a model in high precision is loaded.

    Where it does not say how activations are quantised, and a backend usually does so, it says ``auto`` then, which
    other backends take for ``none``.

    Args:
        config: what was asked for.
        devices: where the model runs; also as torch names them.
    """
    if "activation" in config.model_fields_set:
        return config
    where = [device if isinstance(device, Device) else Device.of(device) for device in devices]
    word = usual_activation(config.backend, where)
    return config if word == config.activation else config.model_copy(update={"activation": word})


def settled_folder(
    contents: Contents, config: Mxfp4Config, devices: Iterable[Device | str]
) -> tuple[Contents, Mxfp4Config]:
    """Return the contents and the config with which a quantised folder is loaded.

    A folder that says how activations are quantised keeps its word. Of one that does not, the caller's counts, and
    where he has none either it is as for weights in high precision; see `settled`.

    Args:
        contents: of the folder.
        config: what the folder says, and the caller's word for activations where he has one.
        devices: where the model runs; also as torch names them.
    """
    if contents.says_activation:
        return contents, config
    config = settled(config, devices)
    return replace(contents, activation=config.activation), config


__all__ = ["settled", "settled_folder", "usual_activation"]
