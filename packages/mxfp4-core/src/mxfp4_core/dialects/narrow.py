"""Checkpoints whose weights are all in FP8 or NVFP4: no MXFP4, so no dialect of it.

They can be dequantised or quantised anew, and both round. What is read here is what `mxfp4 dequantize` and `mxfp4
convert` take beside the dialects.
"""

from __future__ import annotations

from typing import Any

from mxfp4_core.dialects.base import Contents
from mxfp4_core.dialects.beside import Narrow
from mxfp4_core.dialects.fp8 import fp8_weights
from mxfp4_core.dialects.nvfp4 import NVFP4, nvfp4_weights
from mxfp4_core.dialects.pairs import contradiction, name_list
from mxfp4_core.dialects.source import Source

_CT = "compressed-tensors"


def narrow_kind(source: Source) -> str | None:
    """Return what all weights of a checkpoint are in, ``FP8`` or ``NVFP4``; None for anything else."""
    described = source.described
    method = described.get("quant_method")
    if method == "fp8":
        return "FP8"
    if method == "modelopt":
        algorithm = str(described.get("quant_algo")).upper()
        return NVFP4 if algorithm == NVFP4 else "FP8" if algorithm.startswith("FP8") else None
    if method == _CT:
        schemes = _schemes(described)
        kinds = {
            NVFP4
            if (each.get("num_bits"), each.get("group_size"), each.get("type")) == (4, 16, "float")
            else "FP8"
            if (each.get("num_bits"), each.get("type")) == (8, "float")
            else ""
            for each in schemes
        }
        return None if "" in kinds or not kinds else " and ".join(sorted(kinds))
    return None


def read_narrow(source: Source, kind: str) -> Contents:
    """Find the weights of a checkpoint that `narrow_kind` knows; no data is read.

    Raises:
        DialectError: the description and the tensors contradict each other.
    """
    described = source.described
    found: dict[str, Narrow] = dict(nvfp4_weights(kind, source))
    block = described.get("weight_block_size")
    for scheme in _schemes(described):
        block = scheme.get("block_structure") or block
    used = {name for each in found.values() for name in each.names}
    found |= fp8_weights(kind, source, block, used)
    if not found:
        contradiction(
            kind, "no weight in it", "config.json says that weights are quantised in this way, so some are"
        )
    rest = source.rest({name for each in found.values() for name in each.names})
    modules = {weight.removesuffix(".weight") for weight in found}
    static = {
        name: rest.pop(name)
        for name in list(rest)
        if name.endswith(("input_scale", "input_global_scale")) and name.rpartition(".")[0] in modules
    }
    scales = ("_scale", "_scale_inv", "_scale_2", "_global_scale")
    for name in rest:
        if name.endswith(tuple(f".weight{end}" for end in scales)):
            contradiction(kind, f"scales {name!r} without codes", "each tensor of scales belongs to a weight")
    kept: tuple[str, ...] = ()
    for key in ("ignore", "modules_to_not_convert", "exclude_modules"):
        kept = kept or name_list(kind, described, key)
    return Contents({}, rest, kept, static=static, beside=found)


def _schemes(described: Any) -> list[dict[str, Any]]:
    groups = described.get("config_groups")
    rows = groups.values() if isinstance(groups, dict) else ()
    return [row["weights"] for row in rows if isinstance(row, dict) and isinstance(row.get("weights"), dict)]


__all__ = ["narrow_kind", "read_narrow"]
