"""What vLLM asks a quantization method: which layers it takes, and who computes them."""

from __future__ import annotations

from typing import Any

from mxfp4_core.config import Mxfp4Config
from mxfp4_core.loader import (
    EngineLoad,
    EngineMethod,
    EngineNames,
    device_of_new_tensors,
    refused_table,
    renames_of,
)
from mxfp4_vllm import compat
from mxfp4_vllm.experts import Mxfp4ExpertsMethod
from mxfp4_vllm.linear import Mxfp4LinearMethod
from mxfp4_vllm.words import METHOD, METHOD_FP8, layer_name


class Mxfp4QuantizationConfig(EngineMethod, compat.QuantizationConfig):
    """``--quantization mxfp4-core``: weights become MXFP4 while vLLM loads them, or come from a saved folder.

    Args:
        core: the config; that of ``MXFP4_CONFIG`` if None.
        stored: the weights are quantised in the checkpoint.
    """

    def __init__(self, core: Mxfp4Config | None = None, *, stored: bool = False) -> None:
        super().__init__()
        self.core = core or self.asked()
        self.stored = stored
        self.renames: list[tuple[str, str]] = []
        self._loading: tuple[EngineNames, EngineLoad] | None = None
        self._made_up = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loading": None}  # each process has a load of its own

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Mxfp4QuantizationConfig:
        """Read ``quantization_config`` of a saved folder."""
        return cls(cls.read(config), stored=True)

    @classmethod
    def from_config_dict_json(cls, text: str) -> Mxfp4QuantizationConfig:
        """Read the config that ``--hf-overrides '{"quantization_config_dict_json": "..."}'`` gives as JSON."""
        return cls(cls.asked(text))

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Take a checkpoint of another tool where the user names this method."""
        return cls.method if user_quant == cls.method and cls.method == METHOD else None

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Remember what the model calls differently from the checkpoint."""
        self.renames = renames_of(hf_to_vllm_mapper.orig_to_new_prefix)

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """Return who makes and computes the weights of a layer; None for what vLLM computes by itself.

        Raises:
            PatternError: a pattern matches nothing, or splits what vLLM fuses.
            ConfigError: a pattern wants a layer quantised that cannot be.
        """
        linear = isinstance(layer, compat.LinearBase)
        experts = isinstance(layer, compat.RoutedExperts)
        if not (linear or experts or isinstance(layer, compat.VocabParallelEmbedding)):
            return None
        names, load = self._load()
        name = layer_name(prefix)
        decision = names.decide(name)
        if not decision.quantize:
            load.kept(
                name, kind="linear" if linear else type(layer).__name__, reason=decision.reason, nbytes=0
            )
            return compat.UnquantizedLinearMethod() if linear else None
        if not (linear or experts):
            raise refused_table(name, type(layer).__name__, decision.reason, engine="vLLM")
        if linear:
            return Mxfp4LinearMethod(self, name, decision, load)
        return Mxfp4ExpertsMethod(self, layer.moe_config, name, decision, load)

    def _load(self) -> tuple[EngineNames, EngineLoad]:
        if self._loading is None:
            folder, model_config, self._made_up = compat.model_of()
            compat.compiled_for(self.core)
            names = EngineNames(
                self.core,
                model_config=model_config,
                folder=None if self._made_up else folder,
                fused=self.packed_modules_mapping or {},
                renames=self.renames,
                stored=self.stored,
            )
            self._loading = names, EngineLoad(self.core, device=device_of_new_tensors(), stored=self.stored)
        return self._loading

    def loaded(self) -> None:
        """Do what is due once vLLM has made all layers and loaded them; again it does nothing.

        Raises:
            PatternError: a pattern had nothing to do.
        """
        if self._loading is None:
            return
        names, load = self._loading
        names.check()
        for layer in load.layers.values() if self._made_up else ():
            if not layer.touched:
                layer.make_up()
        self._made_up = False


class Mxfp8QuantizationConfig(Mxfp4QuantizationConfig):
    """``--quantization mxfp8-core``: 8-bit values with the scales of MXFP4, where four bits are too few."""

    method = METHOD_FP8


__all__ = ["Mxfp4QuantizationConfig", "Mxfp8QuantizationConfig"]
