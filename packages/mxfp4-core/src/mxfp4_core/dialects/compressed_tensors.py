"""The compressed-tensors dialect, format ``mxfp4-pack-quantized``, as compressed-tensors 0.20 writes it.

Tensors: ``X.weight_packed`` U8 ``[N, K/2]`` and ``X.weight_scale`` U8 ``[N, K/32]``. The description carries
    no scale
rule, so the profile of a file that others wrote is unknown unless it names its provider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mxfp4_core.dialects.base import Contents, Entry, Shapes
from mxfp4_core.dialects.pairs import contradiction, linear_pairs, name_list
from mxfp4_core.errors import DialectError

if TYPE_CHECKING:
    from mxfp4_core.config.schema import Mxfp4Config

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


class CompressedTensorsDialect:
    """Read and write ``quant_method: compressed-tensors`` with MXFP4 weights."""

    name = "compressed-tensors"
    stacked = False

    def recognise(self, quantization_config: Mapping[str, Any], tensors: Shapes) -> str | None:
        """Recognise by ``quant_method`` and a weight scheme of 4-bit floats in groups of 32."""
        if quantization_config.get("quant_method") != self.name:
            return None
        if any(_is_mxfp4(group) for group in _groups(quantization_config)):
            return f"quant_method is {self.name} with 4-bit floats in groups of 32"
        return None

    def tensor_names(self, weight_name: str) -> tuple[str, str]:
        """Append ``_packed`` and ``_scale``."""
        return f"{weight_name}_packed", f"{weight_name}_scale"

    def how_to_load(self, path: str) -> str:
        """Load through transformers' own integration, which needs the package compressed-tensors."""
        return f"AutoModelForCausalLM.from_pretrained({path!r})  # pip install compressed-tensors"

    def write_config(
        self, config: Mxfp4Config, entries: Sequence[Entry], kept: Sequence[str], profile: str
    ) -> dict[str, Any]:
        """Write the scheme MXFP4A16, MXFP4 or MXFP4xFP8, by the activation mode.

        Raises:
            DialectError: an activation mode for which compressed-tensors has no word.
        """
        if config.activation not in _ACTIVATIONS:
            raise DialectError(
                f"dialect {self.name!r} cannot say what the config asks for",
                seen=f"activation {config.activation!r}",
                rule=f"its schemes have activations {', '.join(_ACTIVATIONS)}",
                fix="use one of these, or write the dialect 'mxfp4-core'",
            )
        group = {
            "format": FORMAT,
            "input_activations": _ACTIVATIONS[config.activation],
            "output_activations": None,
            "targets": ["Linear"],
            "weights": dict(_MX),
        }
        return {
            "config_groups": {"group_0": group},
            "format": FORMAT,
            "global_compression_ratio": None,
            "ignore": list(kept),
            "kv_cache_scheme": None,
            "moe_sparsity_config": None,
            "quant_method": self.name,
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": VERSION,
        }

    def read(self, quantization_config: Mapping[str, Any], tensors: Shapes) -> Contents:
        """Find the pairs; refuse transforms and mixed schemes, which plain MXFP4 cannot express."""
        groups = _groups(quantization_config)
        if not all(map(_is_mxfp4, groups)):
            contradiction(self.name, "a group that is not MXFP4", "every group of config_groups is MXFP4")
        transforms = quantization_config.get("transform_config") or {}
        if not isinstance(transforms, dict) or transforms.get("config_groups"):
            contradiction(
                self.name, "transform_config with transforms", "codes stand for the weights themselves"
            )
        entries = linear_pairs(self.name, tensors, codes_suffix=".weight_packed")
        profile = "auto-round" if quantization_config.get("provider") == "auto-round" else ""
        modes = {_activation(group.get("input_activations")) for group in groups}
        if len(modes) > 1:
            contradiction(
                self.name, f"activation modes {sorted(modes)}", "all groups share one activation mode"
            )
        return Contents(entries, name_list(self.name, quantization_config, "ignore"), profile, modes.pop())


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
