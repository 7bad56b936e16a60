"""What SGLang asks a quantization method: which layers it takes, and who computes them."""

from __future__ import annotations

from typing import Any

import torch

from mxfp4_core.loader import device_of_new_tensors, refused_table, renames_of
from mxfp4_sglang import compat
from mxfp4_sglang.experts import Mxfp4ExpertsMethod
from mxfp4_sglang.linear import Mxfp4LinearMethod
from mxfp4_sglang.method import ModelMethod
from mxfp4_sglang.words import ABSORBED, METHOD_FP8


class Mxfp4QuantizationConfig(ModelMethod, compat.QuantizationConfig):
    """``--quantization mxfp4-core``: weights become MXFP4 while SGLang loads them, or come from a saved folder."""

    def get_scaled_act_names(self) -> list[str]:
        """Return no names: nothing scales activations here."""
        return []

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
        device = device_of_new_tensors()
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


__all__ = ["Mxfp4QuantizationConfig", "Mxfp8QuantizationConfig"]
