"""Adapters that peft puts around modules of a model."""

from __future__ import annotations

from typing import Any, Final

from mxfp4_core.errors import ConfigError
from mxfp4_core.modules import Mxfp4Module


def below_adapters(model: Any, path: str) -> str:
    """Return where the MXFP4 module that was loaded at ``path`` is now: adapters hold it as their ``base_layer``."""
    module = model.get_submodule(path)
    while not isinstance(module, Mxfp4Module) and hasattr(module, "base_layer"):
        path, module = f"{path}.base_layer", module.base_layer
    return path


ADAPTED: Final = frozenset({"colwise", "rowwise"})
"""Styles of spreading a weight that peft spreads an adapter by."""


def no_adapter(path: str, style: str) -> ConfigError:
    """Return the error about an adapter on a weight that processes share in a way that peft does not know.

    peft tells the module first how it will spread the adapter, by the attribute ``_hf_tp_plan``. What it does then
    leaves the adapter whole beside the part of the weight.
    """
    return ConfigError(
        f"an adapter cannot be put on {path}",
        seen=f"a weight that processes share, in the style {style!r}",
        rule=f"peft spreads an adapter in the styles {' and '.join(sorted(ADAPTED))}",
        fix="train with the model whole in each process (DistributedDataParallel, or fully_shard for the adapter), or "
        "leave out of target_modules what the plan spreads",
    )


__all__ = ["ADAPTED", "below_adapters", "no_adapter"]
