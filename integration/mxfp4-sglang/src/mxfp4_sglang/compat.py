"""The only module that touches what SGLang changes between releases, or keeps to itself.

Read in each of 0.5.17 to 0.5.23; ``tests/engines`` checks every name below against the released wheels. What
differs between them, and what is done about it:

* ``_get_weights_iterator`` has further keywords since 0.5.18: hooks pass on what they get.
* 0.5.23 asks a MoE method for its runner's backend; 0.5.17 has no ``runner`` on the base class: ours say both.
* Diffusion: the table of methods is a list and a dict up to 0.5.22 and inside a function in 0.5.23, so that function is
  wrapped; up to 0.5.20 the workers load no plug-ins (`words.FIRST_DIFFUSION`).
* Linear loaders of version 2 are chosen by the name of the method's class; ours is not among them, and the loaders of
  version 1 narrow by ``output_dim`` and ``input_dim``, which is right for every part of a weight.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE, FusedMoeWeightScaleSupported
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
from sglang.srt.layers.moe.topk import TopKOutputChecker
from sglang.srt.layers.moe.utils import get_moe_a2a_backend, get_moe_runner_backend
from sglang.srt.layers.quantization import CPU_QUANTIZATION_METHODS, QUANTIZATION_METHODS
from sglang.srt.layers.quantization.base_config import (
    FusedMoEMethodBase,
    LinearMethodBase,
    QuantizationConfig,
)
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod, UnquantizedLinearMethod
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.server_args import QUANTIZATION_CHOICES, add_quantization_method_choices

from mxfp4_core.errors import ConfigError
from mxfp4_core.loader import check_free

LOADER = "sglang.srt.model_loader.loader"
VERIFY = "sglang.srt.configs.model_config.ModelConfig._verify_quantization"
CONFIGURED = f"{LOADER}._get_quantization_config"
WEIGHTS = f"{LOADER}.DefaultModelLoader._get_weights_iterator"
DIFFUSION_QUANTIZATION = "sglang.multimodal_gen.runtime.layers.quantization"
DIFFUSION_GET = f"{DIFFUSION_QUANTIZATION}.get_quantization_config"
DIFFUSION_NAMES = "sglang.multimodal_gen.runtime.loader.utils.get_param_names_mapping"
DIFFUSION_RESOLVE = "sglang.multimodal_gen.runtime.loader.transformer_load_utils._resolve_quant_config"

CHOOSE = "uninstall one of the two, or name the plug-ins to load: SGLANG_PLUGINS=mxfp4"

BLOCK_SCALES = FusedMoeWeightScaleSupported.BLOCK.value
"""What the loader of experts reads on a parameter that is narrowed like the weight."""

_RUNNERS = ("auto", "triton")
"""Runners of experts that route as our modules take it: ids of this rank, -1 for what lives elsewhere."""


def add_methods(methods: Mapping[str, type]) -> None:
    """Make methods known to language models; again it changes nothing.

    Raises:
        ConfigError: somebody else has one of the names.
    """
    for name, config in methods.items():
        check_free(name, QUANTIZATION_METHODS.get(name), config, engine="SGLang", fix=CHOOSE)
    for name, config in methods.items():
        QUANTIZATION_METHODS[name] = CPU_QUANTIZATION_METHODS[name] = config
    add_choices([*methods])


def add_choices(names: list[str]) -> None:
    """Make names choices of ``--quantization``; the parser has the same list."""
    add_quantization_method_choices([name for name in names if name not in QUANTIZATION_CHOICES])


def around(target: str, hook: Callable[..., Any]) -> None:
    """Wrap a function of SGLang, by its path; again it changes nothing."""
    if target not in HookRegistry._patched:
        HookRegistry.register(target, hook, HookType.AROUND)


def around_diffusion(target: str, hook: Callable[..., Any]) -> None:
    """Wrap a function of the diffusion server, whose registry is its own."""
    plugins = importlib.import_module("sglang.multimodal_gen.runtime.platforms.plugins")
    if target not in plugins.HookRegistry._patched:
        plugins.HookRegistry.register(target, hook, HookType.AROUND)


def add_diffusion_methods(methods: Mapping[str, type]) -> None:
    """Make names of methods known to the diffusion server; again it changes nothing.

    Raises:
        ConfigError: somebody else has one of the names.
    """
    module = importlib.import_module(DIFFUSION_QUANTIZATION)
    table = getattr(module, "_CUSTOMIZED_METHOD_TO_QUANT_CONFIG", {})
    for name, config in methods.items():
        check_free(name, table.get(name), config, engine="SGLang's diffusion server", fix=CHOOSE)
        if name not in module.QUANTIZATION_METHODS:
            module.QUANTIZATION_METHODS.append(name)


def diffusion_classes() -> tuple[Any, Any, Any, Any]:
    """Return LinearBase, LinearMethodBase, UnquantizedLinearMethod and QuantizationConfig of the diffusion server."""
    # The package of methods goes first: it and the layers import each other.
    base = importlib.import_module(f"{DIFFUSION_QUANTIZATION}.configs.base_config")
    layers = importlib.import_module("sglang.multimodal_gen.runtime.layers.linear")
    return layers.LinearBase, layers.LinearMethodBase, layers.UnquantizedLinearMethod, base.QuantizationConfig


def diffusion_names(architecture: Any, names: Iterable[str]) -> dict[str, str]:
    """Return names of a checkpoint by the names that the diffusion server has for them; of fused ones the first."""
    module = importlib.import_module("sglang.multimodal_gen.runtime.loader.utils")
    find = module.get_param_names_mapping(architecture.param_names_mapping)
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(find(name)[0], name)
    return found


def check_routing(name: str) -> None:
    """Check that SGLang routes tokens to experts in the way that our modules take.

    Raises:
        ConfigError: another runner or all-to-all backend was asked for; the message names the option.
    """
    runner, exchange = get_moe_runner_backend(), get_moe_a2a_backend()
    if runner.value in _RUNNERS and exchange.is_none():
        return
    seen = f"--moe-runner-backend {runner.value}, --moe-a2a-backend {exchange.value}"
    raise ConfigError(
        f"{name} cannot be MXFP4 experts",
        seen=seen,
        rule="tokens come with the ids of this rank's experts: runner auto or triton, no all-to-all backend",
        fix=f"drop these options, or keep the experts in high precision: ignore=[{name!r}]",
    )


def is_standard(dispatched: Any) -> bool:
    """Return whether tokens come with one row for each, and ids and weights of their experts."""
    return bool(
        dispatched.format.is_standard() and TopKOutputChecker.format_is_standard(dispatched.topk_output)
    )


__all__ = [
    "BLOCK_SCALES",
    "CONFIGURED",
    "DIFFUSION_GET",
    "DIFFUSION_NAMES",
    "DIFFUSION_RESOLVE",
    "VERIFY",
    "WEIGHTS",
    "FusedMoE",
    "FusedMoEMethodBase",
    "LinearBase",
    "LinearMethodBase",
    "QuantizationConfig",
    "StandardCombineInput",
    "UnquantizedFusedMoEMethod",
    "UnquantizedLinearMethod",
    "VocabParallelEmbedding",
    "add_choices",
    "add_diffusion_methods",
    "add_methods",
    "around",
    "around_diffusion",
    "check_routing",
    "diffusion_classes",
    "diffusion_names",
    "is_standard",
]
