"""Routed experts: what SGLang calls to make, load and compute them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from mxfp4_core.backend import Gate, Matrix
from mxfp4_core.errors import BackendError, ConfigError, ShapeError
from mxfp4_core.loader import EngineDecision, device_of_new_tensors, register_parameter
from mxfp4_core.modules import Mxfp4Module
from mxfp4_sglang import compat
from mxfp4_sglang.gates import gate_of
from mxfp4_sglang.hosted import Hosted
from mxfp4_sglang.model import Model

NAMES: Mapping[Matrix, str] = {"gate_up": "w13_weight", "down": "w2_weight"}


class Mxfp4ExpertsMethod(compat.FusedMoEMethodBase):
    """The routed experts of one layer.

    Args:
        model: whose layer it is.
        name: of the layer.
        decision: how it is quantised.
    """

    hosted: Hosted
    runner = None  # SGLang's own kernels are not used

    def __init__(self, model: Model, name: str, decision: EngineDecision) -> None:
        super().__init__()
        self._model, self._name, self._decision = model, name, decision
        self._factor: float | None = None

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make the module of the sizes of this rank, and the parameters that SGLang loads.

        Raises:
            BackendError: no backend takes it; the message has what each one said.
            ShapeError: tensor parallelism cuts a block.
            ConfigError: SGLang wants something of these experts that they do not do. None of the three with
                ``refused="keep"``, but for a block of a folder that is cut.
        """
        plain = compat.UnquantizedFusedMoEMethod()
        sizes = (num_experts, hidden_size, intermediate_size_per_partition, params_dtype)
        make = functools.partial(plain.create_weights, layer, *sizes, **extra_weight_attrs)
        load = self._model.load(device_of_new_tensors())

        def gate() -> Gate:
            compat.check_routing(self._name)
            return gate_of(layer.moe_runner_config, self._name)

        try:
            own = load.experts(
                self._name,
                num_experts,
                intermediate_size_per_partition,
                hidden_size,
                ranks=layer.moe_tp_size,
                dtype=params_dtype,
                decision=self._decision,
                top_k=layer.top_k or 1,
                gate=gate,
                bias=bool(extra_weight_attrs.get("with_bias")),
            )
        except (BackendError, ConfigError, ShapeError) as error:
            layer.quant_method = load.refuse(self._name, plain, kind="experts", error=error)
            make()
            return
        self.hosted = Hosted(own, NAMES, self._model)
        if own.widens:
            layer.quant_method = load.preceded(plain, self.hosted.widening(make))
        loader = extra_weight_attrs["weight_loader"]
        for name in [*own.module.named_biases]:
            self._bias(layer, own.module, name, own.bias_loader(name, loader))
        # SGLang's loader takes parts of a weight for what narrows like the weight.
        self.hosted.register(layer, loader, quant_method=compat.BLOCK_SCALES)

    def create_moe_runner(self, layer: torch.nn.Module, moe_runner_config: Any) -> None:
        """Remember what the result is multiplied with; the module itself is the runner."""
        self._factor = moe_runner_config.routed_scaling_factor

    def get_moe_runner_backend(self, layer: torch.nn.Module) -> None:
        """Return that there is no runner: ids are those of this rank."""
        return None

    def get_triton_quant_info(self, layer: torch.nn.Module) -> NoReturn:
        """Refuse what SGLang asks where it puts LoRA adapters on experts.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"SGLang cannot put LoRA adapters on {self._name}, which are MXFP4 experts",
            seen="--enable-lora with an adapter of experts",
            rule="it computes adapters of experts inside of kernels of its own",
            fix="leave experts out of --lora-target-modules, merge the adapter before the model is quantised, or keep "
            f"the experts in high precision: ignore=[{self._name!r}]",
        )

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Let the module compute with what was loaded.

        Raises:
            LoadError: something is missing, or came twice.
        """
        self._model.loaded()
        self.hosted.finish(layer, stay=True)

    def apply(self, layer: Any, dispatch_output: Any) -> Any:
        """Return what the experts that live here make of their tokens, summed with the weights of the router.

        Raises:
            ConfigError: the tokens are sorted or packed for a kernel of SGLang's.
        """
        if not compat.is_standard(dispatch_output):
            raise ConfigError(
                f"{self._name} cannot compute",
                seen=f"tokens as {type(dispatch_output.topk_output).__name__}",
                rule="tokens come in order, with ids and weights of their experts",
                fix="use --moe-runner-backend triton, and no --moe-a2a-backend",
            )
        routed = dispatch_output.topk_output
        weights = routed.topk_weights
        if self._factor is not None and not layer.should_fuse_routed_scaling_factor_in_topk:
            weights = weights * self._factor
        y = self.hosted.ready()(dispatch_output.hidden_states, routed.topk_ids, weights)
        return compat.StandardCombineInput(hidden_states=y)

    @staticmethod
    def _bias(layer: torch.nn.Module, module: Mxfp4Module, name: str, loader: Any) -> None:
        """Let SGLang load a bias into the memory of the module."""
        shape, dtype = module.named_biases[name].shape, module.named_biases[name].dtype
        stem = name.removesuffix("_bias")
        weight = NAMES["down" if stem == "down_proj" else "gate_up"]
        bias = register_parameter(
            layer, f"{weight}_bias", torch.empty(shape, dtype=dtype), weight_loader=loader
        )
        module._buffers[name] = bias.data


__all__ = ["Mxfp4ExpertsMethod"]
