"""What SGLang asks a quantization method: which layers it takes, and who computes them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from mxfp4_core.config import Mxfp4Config, config_for_stored, config_of_environment
from mxfp4_core.dialects import NATIVE
from mxfp4_core.errors import ConfigError
from mxfp4_sglang import compat
from mxfp4_sglang.experts import Mxfp4ExpertsMethod
from mxfp4_sglang.linear import Mxfp4LinearMethod
from mxfp4_sglang.model import Model
from mxfp4_sglang.words import ABSORBED, FORMATS, METHOD, METHOD_FP8, renames

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
"""Dtypes of activations; whether a backend takes one is asked for each layer."""


class Mxfp4QuantizationConfig(compat.QuantizationConfig):
    """``--quantization mxfp4-core``: weights become MXFP4 while SGLang loads them, or come from a saved folder.

    Args:
        core: the config; that of ``MXFP4_CONFIG`` if None.
        stored: the weights are quantised in the checkpoint.
    """

    method: ClassVar[str] = METHOD

    def __init__(self, core: Mxfp4Config | None = None, *, stored: bool = False) -> None:
        super().__init__()
        core = core or config_of_environment(format=FORMATS[self.method])
        self.model = Model(core, stored)

    @classmethod
    def get_name(cls) -> str:
        """Return the name under which SGLang knows this."""
        return cls.method

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Return the dtypes of activations."""
        return DTYPES

    @classmethod
    def get_min_capability(cls) -> int:
        """Return the least compute capability: any, since backends say themselves what they need."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Return no files: without ``quantization_config`` in config.json, weights are quantised while they load."""
        return []

    def get_scaled_act_names(self) -> list[str]:
        """Return no names: nothing scales activations here."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Mxfp4QuantizationConfig:
        """Read ``quantization_config`` of a saved folder, with the two keys that SGLang adds."""
        config = {
            key: value for key, value in config.items() if key not in ("packed_modules_mapping", "hf_config")
        }
        own = NATIVE.settings(config) if config.get("quant_method") == NATIVE.name else {}
        return cls(config_for_stored(own or {"format": FORMATS[cls.method]}), stored=True)

    @classmethod
    def override_quantization_method(cls, hf_quant_cfg: Any, user_quant: str | None) -> str | None:
        """Take a checkpoint of another tool where the user names this method."""
        return cls.method if user_quant == cls.method else None

    def apply_weight_name_mapper(self, hf_to_sglang_mapper: Any) -> None:
        """Remember what the model calls differently from the checkpoint."""
        self.model.renames = renames(getattr(hf_to_sglang_mapper, "orig_to_new_prefix", None) or {})

    def update_packed_modules_mapping(self, mapping: dict[str, list[str]]) -> None:
        """Remember what the model fuses."""
        super().update_packed_modules_mapping(mapping)
        self.model.fused = mapping

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """Return who makes and computes the weights of a layer; None for what SGLang computes by itself.

        Raises:
            PatternError: a pattern matches nothing, or splits what SGLang fuses.
            ConfigError: an override wants an embedding or an output head quantised.
        """
        linear = isinstance(layer, compat.LinearBase)
        table = isinstance(layer, compat.VocabParallelEmbedding)
        if not (linear or table or isinstance(layer, compat.FusedMoE)):
            return None
        device = compat.device_of_new_tensors()
        decision = self.model.decide(prefix)
        reason = "" if decision.quantize else decision.reason
        if not reason and prefix.rpartition(".")[2] in ABSORBED:
            reason = "SGLang multiplies with it by itself"
        if reason:
            self.model.keep(prefix, "linear" if linear else type(layer).__name__, reason, device)
            return compat.UnquantizedLinearMethod() if linear else None
        if table:
            raise ConfigError(
                f"{prefix} cannot be MXFP4 in SGLang",
                seen=f"a {type(layer).__name__}: {decision.reason}",
                rule="linear layers and routed experts hold MXFP4 weights there",
                fix=f"keep it in high precision: ignore=[{prefix!r}]",
            )
        return (Mxfp4LinearMethod if linear else Mxfp4ExpertsMethod)(self.model, prefix, decision)


class Mxfp8QuantizationConfig(Mxfp4QuantizationConfig):
    """``--quantization mxfp8-core``: 8-bit values with the scales of MXFP4, where four bits are too few."""

    method = METHOD_FP8


__all__ = ["DTYPES", "Mxfp4QuantizationConfig", "Mxfp8QuantizationConfig"]
