"""The only module that touches what vLLM changes between releases, or keeps to itself.

Read in the wheels of 0.26.0, 0.32.0 and 0.33.0; 0.32.0 runs in CI. What differs, and what is done about it:

* A load again (``reload_weights``, RL updates) puts the parameters of every module back as they were made, buffers the
  calls of their loaders, counts elements by calling each loader once on the meta device, and then loads the layer in
  high precision. While that is under way, our loaders step aside (`reloading`), and the layer is quantised as a whole.
* It looks at every module and puts its buffers on the meta device: so the MXFP4 module is no submodule of the layer.
* Compiled graphs are kept on the disk and found by a hash of vLLM's configuration (`compiled_for`).
* ``init_mxfp4_linear_kernel`` asks ``_supports_quant_scheme`` in 0.33, and no activation key in 0.26.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.kernels import linear as linear_kernels
from vllm.model_executor.kernels.linear.mxfp4.base import MxFp4LinearKernel
from vllm.model_executor.layers.fused_moe import (
    FusedMoEMethodBase,
    FusedMoeWeightScaleSupported,
    RoutedExperts,
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config
from vllm.model_executor.layers.quantization import get_quantization_config as registered
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.platforms import current_platform

from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import ConfigError

BLOCK_SCALES: str = FusedMoeWeightScaleSupported.BLOCK.value
"""What a parameter of experts is marked with whose scales are cut like the weight."""


def reloading(layer: torch.nn.Module) -> bool:
    """Say whether vLLM is loading this layer again by its own machinery, which wants plain parameters."""
    return bool(get_layerwise_info(layer).can_load())


def model_of() -> tuple[str, dict[str, Any], bool]:
    """Return of the model that is being built: its path or name, its config.json, and whether weights are made up."""
    current = get_current_vllm_config()
    config = current.model_config
    return config.model, config.hf_config.to_dict(), current.load_config.load_format == "dummy"


def compiled_for(settings: Mxfp4Config) -> None:
    """Tell vLLM what a compiled graph of this model is for: else it takes one that was made with other settings.

    It keeps graphs on the disk, and finds them by its own configuration, of which ours is no part but for the name of
    the method. What stands in ``additional_config`` is, and is there for plug-ins.

    Raises:
        ConfigError: that is something else already.
    """
    told = get_current_vllm_config().additional_config
    if not isinstance(told, dict):
        raise ConfigError(
            "vLLM's compiled graphs cannot be told apart by the settings of mxfp4",
            seen=f"additional_config of type {type(told).__name__}",
            rule="it is a dictionary, which plug-ins add to",
            fix="serve with --enforce-eager, and without an additional_config of another type",
        )
    told["mxfp4"] = f"{version('mxfp4-vllm')} {settings.fingerprint()}"


def has_adapters() -> bool:
    """Say whether vLLM was started for LoRA adapters, which it puts on the device of ``layer.weight``."""
    return get_current_vllm_config().lora_config is not None


def check_adapters(name: str) -> None:
    """Check that vLLM does not want adapters on experts, which it computes inside of kernels of its own.

    Raises:
        ConfigError: it was started for adapters.
    """
    if has_adapters():
        raise ConfigError(
            "vLLM cannot put LoRA adapters on MXFP4 experts",
            seen="--enable-lora",
            rule="it computes adapters of experts inside of kernels of its own",
            fix="serve without --enable-lora, merge the adapter before the model is quantised, or keep the experts in "
            f"high precision: ignore=[{name!r}], or refused='keep' for all that cannot be MXFP4",
        )


def offer_linear_kernel(kernel: type) -> None:
    """Give vLLM a kernel for MXFP4 linear layers on this platform, behind its own."""
    platform = current_platform._enum
    if kernel not in linear_kernels._POSSIBLE_MXFP4_KERNELS.get(platform, []):
        linear_kernels.register_linear_kernel(kernel, platform, "mxfp4")


__all__ = [
    "BLOCK_SCALES",
    "QUANTIZATION_METHODS",
    "FusedMoEMethodBase",
    "LinearBase",
    "LinearMethodBase",
    "MxFp4LinearKernel",
    "QuantizationConfig",
    "QuantizeMethodBase",
    "RoutedExperts",
    "UnquantizedFusedMoEMethod",
    "UnquantizedLinearMethod",
    "VocabParallelEmbedding",
    "check_adapters",
    "compiled_for",
    "has_adapters",
    "model_of",
    "offer_linear_kernel",
    "register_quantization_config",
    "registered",
    "reloading",
]
