"""The names that msmodelslim gives to tensors, and what they mean.

A layer that was smoothed is wrapped: ``X.linear.weight`` with its scales, and ``X.div.mul_scale``, by which x is
multiplied first. SGLang's repack of Wan drops both words: ``X.weight`` and ``X.mul_scale``. Models have layers of their
own that are called ``linear``, so the word is a wrapper's only where its ``div`` stands beside it.

Sources: msmodelslim 26.1.0, ``core/quant_service/modelslim_v1/save/ascendv1.py``; SGLang 0.5.23, ``wan_repack.py``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

DESCRIPTION: Final = "quant_model_description.json"
"""The file that says the type of each tensor."""

SINGLE: Final = "W4A4_MXFP4"
DUAL: Final = "W4A4_MXFP4_DUALSCALE"
FLOAT: Final = "FLOAT"
TYPES: Final = (FLOAT, SINGLE, DUAL)
"""The types of tensors that are read."""

SCALE: Final = "weight_scale"
OUTER: Final = "weight_dual_scale"
MULTIPLIERS: Final = (".div.mul_scale", ".mul_scale")

SETTINGS: Final = frozenset(
    {
        "version",
        "model_quant_type",
        "metadata",
        "group_size",
        "optional",
        "kv_quant_type",
        "kv_cache_type",
        "fa_quant_type",
    }
)
"""Keys of the description that are no tensors."""


@dataclass(frozen=True)
class Layer:
    """Where the tensors of one quantised weight stand.

    Attributes:
        module: name of the module in the model.
        stored: name of the module in the file: with the wrapper's word where there is one.
        multiplier: the tensor by which x is multiplied, empty if there is none.
    """

    module: str
    stored: str
    multiplier: str = ""


def layer_of(weight: str, tensors: Collection[str]) -> Layer:
    """Return where the tensors of a weight stand.

    Args:
        weight: name of the codes in the file, which ends in ``.weight``.
        tensors: all names in the file.
    """
    stored = weight.removesuffix(".weight")
    module = unwrapped(stored, tensors)
    found = [f"{module}{end}" for end in MULTIPLIERS if f"{module}{end}" in tensors]
    return Layer(module, stored, found[0] if found else "")


def unwrapped(module: str, tensors: Collection[str]) -> str:
    """Return the name of a module in the model: without ``.linear`` where the file has its ``.div.mul_scale``."""
    inner = module.removesuffix(".linear")
    return inner if inner != module and f"{inner}.div.mul_scale" in tensors else module


def unwrapped_tensor(name: str, tensors: Collection[str]) -> str:
    """Return the name of a tensor in the model; see `unwrapped`."""
    module, dot, last = name.rpartition(".")
    return f"{unwrapped(module, tensors)}{dot}{last}"


__all__ = [
    "DESCRIPTION",
    "DUAL",
    "FLOAT",
    "MULTIPLIERS",
    "OUTER",
    "SCALE",
    "SETTINGS",
    "SINGLE",
    "TYPES",
    "Layer",
    "layer_of",
    "unwrapped",
    "unwrapped_tensor",
]
