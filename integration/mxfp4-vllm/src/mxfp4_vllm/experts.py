"""Routed experts: what vLLM calls to make, load and compute them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from mxfp4_core.backend import Gate, Matrix
from mxfp4_core.errors import BackendError, ConfigError, ShapeError
from mxfp4_core.loader import EngineDecision, EngineLoad
from mxfp4_core.modules import Mxfp4Module
from mxfp4_vllm import compat
from mxfp4_vllm.gates import gate_of
from mxfp4_vllm.hosted import Hosted
from mxfp4_vllm.stacks import whole_stacks

if TYPE_CHECKING:
    from mxfp4_vllm.config import Mxfp4QuantizationConfig

NAMES: Mapping[Matrix, str] = {"gate_up": "w13_weight", "down": "w2_weight"}
BIASES = {"gate_up_proj_bias": "w13_bias", "up_proj_bias": "w13_bias", "down_proj_bias": "w2_bias"}


class Mxfp4ExpertsMethod(compat.FusedMoEMethodBase):
    """The routed experts of one layer.

    Args:
        config: of the model.
        moe: what vLLM says of the experts.
        name: of the layer.
        decision: how it is quantised.
        load: of the model.
    """

    hosted: Hosted
    module: Mxfp4Module

    def __init__(
        self, config: Mxfp4QuantizationConfig, moe: Any, name: str, decision: EngineDecision, load: EngineLoad
    ) -> None:
        super().__init__(moe)
        self._config, self._name, self._decision, self._load = config, name, decision, load

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make the module of the sizes of this rank, and the parameters that vLLM loads.

        Raises:
            BackendError: no backend takes it; the message has what each one said.
            ShapeError: tensor parallelism cuts a block.
            ConfigError: vLLM wants something of these experts that they do not do. None of the three with
                ``refused="keep"``, but for a block of a folder that is cut.
        """
        how, moe = self._decision, self.moe
        plain = compat.UnquantizedFusedMoEMethod(moe)
        sizes = (num_experts, hidden_size, intermediate_size_per_partition, params_dtype)
        make = functools.partial(plain.create_weights, layer, *sizes, **extra_weight_attrs)

        def gate() -> Gate:
            compat.check_adapters(self._name)
            return gate_of(layer, self._name)

        try:
            own = self._load.experts(
                self._name,
                num_experts,
                intermediate_size_per_partition,
                hidden_size,
                ranks=moe.moe_parallel_config.tp_size,
                dtype=params_dtype,
                decision=how,
                top_k=moe.experts_per_token,
                gate=gate,
                bias=bool(moe.has_bias),
                total_experts=moe.num_experts,
                expert_map=layer.expert_map,
            )
        except (BackendError, ConfigError, ShapeError) as error:
            layer.quant_method = self._load.refuse(self._name, plain, kind="experts", error=error)
            make()
            return
        self.module = own.module
        self.hosted = Hosted(own, NAMES)
        if own.widens:
            layer.quant_method = self._load.preceded(plain, self.hosted.widening(make, self._config.loaded))
        loader = whole_stacks(extra_weight_attrs.pop("weight_loader"))
        marks = {**extra_weight_attrs, "quant_method": compat.BLOCK_SCALES}
        self.hosted.register(layer, loader, **marks)
        if moe.has_bias:
            names = {own: BIASES[own] for own in self.module.named_biases}
            self.hosted.register_biases(layer, names, loader, **extra_weight_attrs)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Let the module compute with what was loaded.

        Raises:
            LoadError: something is missing, or came twice.
        """
        self._config.loaded()
        self.hosted.finish(layer)

    def get_fused_moe_quant_config(self, layer: torch.nn.Module) -> None:
        """Return nothing: the kernels of vLLM are not used."""
        return None

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any = None,
        shared_experts_input: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return what the experts that live here make of their tokens, summed with the weights of the router."""
        result: torch.Tensor = self.module(x, topk_ids, topk_weights)
        return result


__all__ = ["Mxfp4ExpertsMethod"]
