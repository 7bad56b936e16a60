"""The groups of a compressed-tensors description: which weights are MXFP4, MXFP8 or FP8, and how inputs are quantised.

A group has a scheme and the modules that it is for: classes such as ``Linear``, names, or ``re:`` expressions, names
first. Source: compressed-tensors 0.20, ``quantization/quant_scheme.py`` and ``utils/match.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mxfp4_core.config.patterns import PatternSet
from mxfp4_core.dialects.beside import Beside, Narrow
from mxfp4_core.naming.exclude_lists import exclude_patterns

MXFP4_FORMAT: Final = "mxfp4-pack-quantized"
MXFP8_FORMAT: Final = "mxfp8-quantized"
FP8_FORMAT: Final = "float-quantized"
MIXED: Final = "mixed-precision"

_MX: Final[Mapping[str, Any]] = {
    "dynamic": False,
    "group_size": 32,
    "num_bits": 4,
    "scale_dtype": "torch.uint8",
    "strategy": "group",
    "symmetric": True,
    "type": "float",
}
_FP8_INPUT: Final[Mapping[str, Any]] = {
    "dynamic": True,
    "group_size": 128,
    "num_bits": 8,
    "strategy": "group",
    "symmetric": True,
    "type": "float",
}
ACTIVATIONS: Final[Mapping[str, Mapping[str, Any] | None]] = {
    "none": None,
    "mxfp4": {**_MX, "dynamic": True},
    "mxfp8": {**_MX, "dynamic": True, "num_bits": 8},
    "fp8": _FP8_INPUT,
}
"""Schemes of inputs by our word for them."""


def groups_of(described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of a description."""
    groups = described.get("config_groups")
    return [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []


def kind_of(group: Mapping[str, Any]) -> str:
    """Return ``mxfp4``, ``mxfp8`` or ``fp8``, or nothing for another scheme."""
    weights = group.get("weights")
    if not isinstance(weights, dict) or weights.get("type") != "float":
        return ""
    bits, size = weights.get("num_bits"), weights.get("group_size")
    if (bits, size, weights.get("strategy")) == (4, 32, "group"):
        return "mxfp4"
    if (bits, size, weights.get("strategy")) == (8, 32, "group"):
        return "mxfp8"
    return "fp8" if bits == 8 and weights.get("strategy") in ("tensor", "channel", "block") else ""


def activation_of(scheme: object) -> str:
    """Return our word for how inputs are quantised."""
    if not isinstance(scheme, dict):
        return "none"
    if scheme.get("num_bits") == 4:
        return "mxfp4"
    return "mxfp8" if (scheme.get("strategy"), scheme.get("group_size")) == ("group", 32) else "fp8"


def inputs_for(
    modules: Sequence[str], groups: Sequence[Mapping[str, Any]], kind: str = "fp8"
) -> dict[str, str]:
    """Return the scheme of inputs of modules of one kind as JSON: of the group that names one, else of the first.

    Raises:
        PatternError: a target that is no expression.
    """
    mine = [group for group in groups if kind_of(group) == kind]
    found: dict[str, str] = {}
    for group in mine:
        text = json.dumps(group.get("input_activations"), sort_keys=True)
        targets = group.get("targets")
        names = [each for each in targets if isinstance(each, str)] if isinstance(targets, list) else []
        patterns = PatternSet(exclude_patterns("compressed-tensors", names))
        for module in modules:
            if module not in found and patterns.find(module):
                found[module] = text
    first = json.dumps(mine[0].get("input_activations") if mine else None, sort_keys=True)
    return {module: found.get(module, first) for module in modules}


def mx_group(bits: int, activation: str, targets: Sequence[str]) -> dict[str, Any]:
    """Return the group of weights in MXFP4 (4 bits) or MXFP8 (8 bits)."""
    inputs = ACTIVATIONS[activation]
    return {
        "format": MXFP4_FORMAT if bits == 4 else MXFP8_FORMAT,
        "input_activations": None if inputs is None else dict(inputs),
        "output_activations": None,
        "targets": list(targets),
        "weights": {**_MX, "num_bits": bits},
    }


def fp8_groups(weights: Sequence[Narrow]) -> list[dict[str, Any]]:
    """Return one group for each kind of FP8 weights, with the names of its modules."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in weights:
        if isinstance(each, Beside):
            scheme = json.dumps(_fp8_scheme(each), sort_keys=True)
            found.setdefault((scheme, each.inputs), []).append(each.weight.removesuffix(".weight"))
    return [
        {
            "format": FP8_FORMAT,
            "input_activations": json.loads(inputs) if inputs else None,
            "output_activations": None,
            "targets": modules,
            "weights": json.loads(scheme),
        }
        for (scheme, inputs), modules in found.items()
    ]


def _fp8_scheme(weight: Beside) -> dict[str, Any]:
    scheme = {"dynamic": False, "num_bits": 8, "symmetric": True, "type": "float"}
    n, k = weight.shape[-2:]
    if weight.block == (n, k) and weight.scales.shape == (1, 1):
        return {**scheme, "strategy": "tensor"}
    if weight.block == (1, k):
        return {**scheme, "strategy": "channel"}
    return {**scheme, "strategy": "block", "block_structure": list(weight.block)}


__all__ = [
    "ACTIVATIONS", "FP8_FORMAT", "MIXED", "MXFP4_FORMAT", "MXFP8_FORMAT", "activation_of", "fp8_groups", "groups_of",
    "inputs_for", "kind_of", "mx_group",
]  # fmt: skip
