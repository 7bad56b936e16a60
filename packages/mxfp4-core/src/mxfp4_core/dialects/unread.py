"""Notice checkpoints that are already quantised in ways that no dialect here reads.

Quantising such weights again would ruin them without any error, so every public format is recognised by its
description, by the files beside it, or by the names and dtypes of its tensors alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from mxfp4_core.dialects.source import Shapes

_METHODS = {
    "auto-round": "auto-round",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8 (DeepSeek style)",
    "fp_quant": "FP-Quant",
    "gptq": "GPTQ",
    "modelopt": "NVIDIA ModelOpt",
    "mxfp4": "gpt-oss MXFP4",
    "quark": "AMD Quark",
    "torchao": "torchao",
}

_FILES = {
    "quant_model_description.json": "msmodelslim",
    "hf_quant_config.json": "NVIDIA ModelOpt",
    "quantize_config.json": "GPTQ or AWQ",
}

DESCRIPTIONS = frozenset({*_FILES, "quantization_config.json"})
"""Files beside ``config.json`` that describe a quantisation; a new checkpoint does not take them over."""

# The end of a name, the dtypes it then has, and who writes it; the first match wins.
_TENSORS = (
    ("_blocks", {"U8"}, "gpt-oss MXFP4"),
    (".blocks", {"U8"}, "gpt-oss MXFP4 (original layout)"),
    (".weight_packed", {"U8", "I32"}, "compressed-tensors"),
    (".qweight", {"U8", "I32"}, "GPTQ, AWQ or FP-Quant"),
    ("._weight_qdata", {"U8", "I8", "F4"}, "torchao"),
    (".absmax", {"F32", "U8"}, "bitsandbytes"),
    (".weight_scale_inv", {"F32", "U8", "F8_E8M0"}, "FP8 (DeepSeek style)"),
    (".scale", {"F8_E8M0"}, "FP8 or FP4 (DeepSeek style)"),
    (
        ".weight_scale",
        {"U8", "F8_E8M0", "F8_E4M3"},
        "packed weights with scales (Quark, ModelOpt or mxfp4-core)",
    ),
)
_NARROW = {"U8", "I8", "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}


def unread_format(config: Mapping[str, Any], tensors: Shapes, files: Set[str]) -> tuple[str, str] | None:
    """Return the name of the format and how it was noticed, or None for a checkpoint in high precision."""
    for where, described in _descriptions(config):
        method = described.get("quant_method") if isinstance(described, dict) else None
        known = _METHODS.get(method, f"unknown method {method!r}") if isinstance(method, str) else "unknown"
        return known, f"{where} in config.json, quant_method {method!r}"
    if config.get("expert_dtype") == "fp4":
        return "FP8 and FP4 (DeepSeek style)", "expert_dtype is fp4 in config.json"
    for name, format_name in _FILES.items():
        if name in files:
            return format_name, f"file {name}"
    if found := _by_names(tensors):
        format_name, name, dtype = found
        return format_name, f"tensor {name!r} of dtype {dtype}, no description in config.json"
    for name, (dtype, shape) in tensors.items():
        # Masks may be bytes too; weights have names that say so.
        if dtype in _NARROW and len(shape) > 1 and name.endswith(("weight", "proj")):
            return "unknown", f"tensor {name!r} of dtype {dtype}, no description in config.json"
    return None


def named_like(tensors: Shapes) -> str | None:
    """Say whose names the tensors have, or None where no public format is known for such names."""
    found = _by_names(tensors)
    return f"{found[1]!r} of dtype {found[2]} is a name of {found[0]}" if found else None


def _by_names(tensors: Shapes) -> tuple[str, str, str] | None:
    ends = tuple(suffix for suffix, _, _ in _TENSORS)
    told = {
        name: dtype for name, (dtype, _) in tensors.items() if name.endswith(ends)
    }  # of plain weights none
    for suffix, dtypes, format_name in _TENSORS:
        for name, dtype in told.items():
            if name.endswith(suffix) and dtype in dtypes:
                return format_name, name, dtype
    return None


def _descriptions(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what describes a quantisation, for the whole model or for a part of it."""
    nested = ((f"{k}.", v) for k, v in config.items() if isinstance(v, dict) and k.endswith("_config"))
    parts = [("", config), *nested]
    keys = ("quantization_config", "compression_config")
    return [(prefix + key, part[key]) for prefix, part in parts for key in keys if part.get(key)]


__all__ = ["DESCRIPTIONS", "named_like", "unread_format"]
