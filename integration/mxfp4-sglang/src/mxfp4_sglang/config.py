"""What SGLang asks a quantization method: which layers it takes, and who computes them."""

from __future__ import annotations

from typing import Any

import torch

from mxfp4_core.config import Mxfp4Config
from mxfp4_core.loader import EngineMethod, refused_table, renames_of
from mxfp4_sglang import compat
from mxfp4_sglang.experts import Mxfp4ExpertsMethod
from mxfp4_sglang.linear import Mxfp4LinearMethod
from mxfp4_sglang.model import Model
from mxfp4_sglang.words import ABSORBED, METHOD_FP8

ADDED = ("packed_modules_mapping", "hf_config")
"""What SGLang writes into ``quantization_config`` of a checkpoint before it hands it over."""


class Mxfp4QuantizationConfig(EngineMethod, compat.QuantizationConfig):
    """``--quantization mxfp4-core``: weights become MXFP4 while SGLang loads them, or come from a saved folder.

    Args:
        core: the config; that of ``MXFP4_CONFIG`` if None.
        stored: the weights are quantised in the checkpoint.
    """

    def __init__(self, core: Mxfp4Config | None = None, *, stored: bool = False) -> None:
        super().__init__()
        self.model = Model(core or self.asked(), stored)

    def get_scaled_act_names(self) -> list[str]:
        """Return no names: nothing scales activations here."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Mxfp4QuantizationConfig:
        """Read ``quantization_config`` of a saved folder."""
        said = {key: value for key, value in config.items() if key not in ADDED}
        return cls(cls.read(said), stored=True)

    @classmethod
    def override_quantization_method(cls, hf_quant_cfg: Any, user_quant: str | None) -> str | None:
        """Take a checkpoint of another tool where the user names this method."""
        return cls.method if user_quant == cls.method else None

    def apply_weight_name_mapper(self, hf_to_sglang_mapper: Any) -> None:
        """Remember what the model calls differently from the checkpoint."""
        self.model.renames = renames_of(getattr(hf_to_sglang_mapper, "orig_to_new_prefix", None) or {})

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
            raise refused_table(prefix, type(layer).__name__, decision.reason, engine="SGLang")
        return (Mxfp4LinearMethod if linear else Mxfp4ExpertsMethod)(self.model, prefix, decision)


class Mxfp8QuantizationConfig(Mxfp4QuantizationConfig):
    """``--quantization mxfp8-core``: 8-bit values with the scales of MXFP4, where four bits are too few."""

    method = METHOD_FP8


__all__ = ["ADDED", "Mxfp4QuantizationConfig", "Mxfp8QuantizationConfig"]
