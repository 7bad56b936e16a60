"""Adapters that peft puts around modules of a model."""

from __future__ import annotations

from typing import Any

from mxfp4_core.modules import Mxfp4Module


def below_adapters(model: Any, path: str) -> str:
    """Return where the MXFP4 module that was loaded at ``path`` is now: adapters hold it as their ``base_layer``."""
    module = model.get_submodule(path)
    while not isinstance(module, Mxfp4Module) and hasattr(module, "base_layer"):
        path, module = f"{path}.base_layer", module.base_layer
    return path


__all__ = ["below_adapters"]
