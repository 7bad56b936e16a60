"""The compressed-tensors dialect, format ``mxfp4-pack-quantized``, as compressed-tensors 0.20 writes it.

Tensors: ``X.weight_packed`` U8 ``[N, K/2]`` and ``X.weight_scale`` U8 ``[N, K/32]``. The description carries no scale
rule, so the profile of a file that others wrote is unknown unless it names its provider (auto-round).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mxfp4_core.dialects.base import AUTO_CLASS, Contents, Description, Dialect, Entry, one_activation
from mxfp4_core.dialects.pairs import contradiction, find_entries, name_list
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError

FORMAT = "mxfp4-pack-quantized"
VERSION = "0.20.0"
"""The release of compressed-tensors whose description we write."""

_MX = {
    "dynamic": False,
    "group_size": 32,
    "num_bits": 4,
    "scale_dtype": "torch.uint8",
    "strategy": "group",
    "symmetric": True,
    "type": "float",
}
_FP8 = {
    "dynamic": True,
    "group_size": 128,
    "num_bits": 8,
    "strategy": "group",
    "symmetric": True,
    "type": "float",
}
_ACTIVATIONS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "mxfp4": {**_MX, "dynamic": True},
    "fp8": _FP8,
}


class CompressedTensorsDialect(Dialect):
    """Read and write ``quant_method: compressed-tensors`` with MXFP4 weights."""

    name = "compressed-tensors"
    components = True
    readers = (
        "vLLM, and in transformers with the package compressed-tensors where no code of the model asks a linear for "
        "its weight, as that of T5 and Mamba does"
    )

    def recognise(self, source: Source) -> str | None:
        """Recognise by ``quant_method`` and a weight scheme of 4-bit floats in groups of 32."""
        if source.described.get("quant_method") != self.name:
            return None
        if any(_is_mxfp4(group) for group in _groups(source.described)):
            return f"quant_method is {self.name} with 4-bit floats in groups of 32"
        return None

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Append ``_packed`` and ``_scale``."""
        codes, scales = entry.parts["codes"], entry.parts["scales"]
        return {f"{entry.weight}_packed": codes, f"{entry.weight}_scale": scales}

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Load through the adapter of this project, which works for every model.

        transformers' own integration, with the package compressed-tensors, has linears without a ``weight``: the code
        of T5, Mamba and others asks for it, and so does transformers itself where a linear is tied.
        """
        if model == AUTO_CLASS:  # what it takes by itself
            return f"import mxfp4_transformers; mxfp4_transformers.from_pretrained({path!r})"
        call = f"mxfp4_transformers.from_pretrained({path!r}, auto_class=transformers.{model})"
        return f"import mxfp4_transformers, transformers; {call}"

    def describe(self, description: Description) -> dict[str, Any]:
        """Write the scheme MXFP4A16, MXFP4 or MXFP4xFP8, by the activation mode.

        Raises:
            DialectError: an activation mode for which compressed-tensors has no word.
        """
        activation = one_activation(self.name, description)
        if activation not in _ACTIVATIONS:
            raise DialectError(
                f"dialect {self.name!r} cannot say what the config asks for",
                seen=f"activation {activation!r}",
                rule=f"its schemes have activations {', '.join(_ACTIVATIONS)}",
                fix="use one of these, or write the dialect 'mxfp4-core'",
            )
        group = {
            "format": FORMAT,
            "input_activations": _ACTIVATIONS[activation],
            "output_activations": None,
            "targets": ["Linear"],
            "weights": dict(_MX),
        }
        provider = {"provider": "auto-round"} if description.profile == "auto-round" else {}
        return {
            **provider,
            "config_groups": {"group_0": group},
            "format": FORMAT,
            "global_compression_ratio": None,
            "ignore": list(description.kept),
            "kv_cache_scheme": None,
            "moe_sparsity_config": None,
            "quant_method": self.name,
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": VERSION,
        }

    def read(self, source: Source) -> Contents:
        """Find the pairs; refuse transforms and mixed schemes, which plain MXFP4 cannot express."""
        described = source.described
        groups = _groups(described)
        if not all(map(_is_mxfp4, groups)):
            contradiction(self.name, "a group that is not MXFP4", "every group of config_groups is MXFP4")
        transforms = described.get("transform_config") or {}
        if not isinstance(transforms, dict) or transforms.get("config_groups"):
            contradiction(
                self.name, "transform_config with transforms", "codes stand for the weights themselves"
            )
        names = {"codes": ".weight_packed", "scales": ".weight_scale"}
        entries = find_entries(self.name, source, names)
        profile = "auto-round" if described.get("provider") == "auto-round" else ""
        modes = {_activation(group.get("input_activations")) for group in groups}
        if len(modes) > 1:
            contradiction(
                self.name, f"activation modes {sorted(modes)}", "all groups share one activation mode"
            )
        kept = name_list(self.name, described, "ignore")
        rest = source.rest({name for entry in entries.values() for name in entry.names})
        return Contents(entries, rest, kept, profile, modes.pop())


def _groups(quantization_config: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = quantization_config.get("config_groups")
    return [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []


def _is_mxfp4(group: Mapping[str, Any]) -> bool:
    weights = group.get("weights")
    if not isinstance(weights, dict):
        return False
    wanted = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
    return all(weights.get(key) == value for key, value in wanted.items())


def _activation(scheme: object) -> str:
    if not isinstance(scheme, dict):
        return "none"
    return "mxfp4" if scheme.get("num_bits") == 4 else "fp8"


COMPRESSED_TENSORS = CompressedTensorsDialect()

__all__ = ["COMPRESSED_TENSORS", "CompressedTensorsDialect"]
