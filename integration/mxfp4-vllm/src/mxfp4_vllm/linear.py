"""Linear layers: what vLLM calls to make, load and compute them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from mxfp4_core.errors import BackendError, ShapeError
from mxfp4_core.loader import EngineDecision, EngineLoad
from mxfp4_core.modules import Mxfp4Module
from mxfp4_vllm import compat
from mxfp4_vllm.hosted import Hosted

if TYPE_CHECKING:
    from mxfp4_vllm.config import Mxfp4QuantizationConfig


class Mxfp4LinearMethod(compat.LinearMethodBase):
    """One linear layer.

    Args:
        config: of the model.
        name: of the layer.
        decision: how it is quantised.
        load: of the model.
    """

    hosted: Hosted
    module: Mxfp4Module

    def __init__(
        self, config: Mxfp4QuantizationConfig, name: str, decision: EngineDecision, load: EngineLoad
    ) -> None:
        super().__init__()
        self._config, self._name, self._decision, self._load = config, name, decision, load

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make the module of the sizes of this rank, and the parameters that vLLM loads.

        Raises:
            BackendError: no backend takes it; the message has what each one said.
            ShapeError: tensor parallelism cuts a block. Neither with ``refused="keep"``, but for a block of a folder.
        """
        how = self._decision
        n, k = sum(output_partition_sizes), input_size_per_partition
        plain = compat.UnquantizedLinearMethod()
        sizes = (output_partition_sizes, input_size, output_size, params_dtype)
        make = functools.partial(plain.create_weights, layer, k, *sizes, **extra_weight_attrs)
        try:
            own = self._load.linear(self._name, n, k, whole_k=input_size, dtype=params_dtype, decision=how)
        except (BackendError, ShapeError) as error:
            layer.quant_method = self._load.refuse(self._name, plain, kind="linear", error=error)
            make()
            return
        self.module = own.module
        self.hosted = Hosted(own, {"weight": "weight"})
        if own.widens:
            layer.quant_method = self._load.preceded(plain, self.hosted.widening(make, self._config.loaded))
        loader = extra_weight_attrs.pop("weight_loader")
        self.hosted.register(layer, loader, input_dim=1, output_dim=0, **extra_weight_attrs)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Let the module compute with what was loaded.

        Raises:
            LoadError: something is missing, or came twice.
        """
        self._config.loaded()
        self.hosted.finish(layer)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return ``x @ weight.T + bias``."""
        y: torch.Tensor = self.module(x)
        return y if bias is None else y + bias


__all__ = ["Mxfp4LinearMethod"]
