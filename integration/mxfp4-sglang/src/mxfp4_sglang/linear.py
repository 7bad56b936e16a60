"""Linear layers: what SGLang calls to make, load and compute them, in language models and in diffusion models."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch

from mxfp4_core.errors import BackendError, ShapeError
from mxfp4_core.loader import EngineDecision, device_of_new_tensors
from mxfp4_sglang import compat
from mxfp4_sglang.hosted import Hosted
from mxfp4_sglang.model import Model


class LinearWeights:
    """One linear layer; the classes below it are what the two servers of SGLang take for a method.

    Args:
        model: whose layer it is.
        name: of the layer.
        decision: how it is quantised.
    """

    hosted: Hosted
    stay: ClassVar[bool] = True
    """Whether other weights can be loaded later."""

    plain: ClassVar[Any] = compat.UnquantizedLinearMethod
    """What SGLang takes for a layer in high precision."""

    def __init__(self, model: Model, name: str, decision: EngineDecision) -> None:
        super().__init__()
        self._model, self._name, self._decision = model, name, decision

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
        """Make the module of the sizes of this rank, and the parameters that SGLang loads.

        Raises:
            BackendError: no backend takes it; the message has what each one said.
            ShapeError: tensor parallelism cuts a block. Neither with ``refused="keep"``, but for a block of a folder.
        """
        how, k, plain = self._decision, input_size_per_partition, self.plain()
        sizes = (output_partition_sizes, input_size, output_size, params_dtype)
        make = functools.partial(plain.create_weights, layer, k, *sizes, **extra_weight_attrs)
        load = self._model.load(device_of_new_tensors())
        try:
            n = sum(output_partition_sizes)
            own = load.linear(self._name, n, k, whole_k=input_size, dtype=params_dtype, decision=how)
        except (BackendError, ShapeError) as error:
            layer.quant_method = load.refuse(self._name, plain, kind="linear", error=error)
            make()
            return
        self.hosted = Hosted(own, {"weight": "weight"}, self._model)
        if own.widens:
            layer.quant_method = load.preceded(plain, self.hosted.widening(make))
        loader = extra_weight_attrs["weight_loader"]
        self.hosted.register(layer, loader, input_dim=1, output_dim=0, missing_param_init="error")

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Let the module compute with what was loaded.

        Raises:
            LoadError: something is missing, or came twice.
        """
        self._model.loaded()
        self.hosted.finish(layer, stay=self.stay)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return ``x @ weight.T + bias``."""
        y: torch.Tensor = self.hosted.ready()(x)
        return y if bias is None else y + bias


class Mxfp4LinearMethod(LinearWeights, compat.LinearMethodBase):
    """A linear layer of a language model."""


__all__ = ["LinearWeights", "Mxfp4LinearMethod"]
