"""The only module, beside `meta`, that touches what transformers changes between releases, or keeps to itself.

Checked with 5.17.0 and 5.24.0. What differs between them, and what is done about it:

* ``update_weight_conversions`` is called with the model since 5.23: the quantizer remembers the model.
* 5.17 casts a tensor from the checkpoint to the dtype of the placeholder before it is quantised: placeholders
  have the dtype of the model (`mxfp4_core.modules.hold_place`).
* 5.17 ends no pattern at a name boundary, so ``w1.weight`` also matches ``w1.weight_scale``: ``bounded`` does.
* ``SplitModulelist`` of 5.17 drops every axis of length 1, so the scales of a weight with K = 32 would lose
  their last axis when they are saved: ``SplitExperts`` drops the expert axis only.
* Both catch what an operation raises during conversion, and end with a RuntimeError of their own: the
  converters of this package run outside of that net (``ops.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers.distributed import tensor_parallel
from transformers.distributed.tensor_parallel import replace_layer_number_by_wildcard
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.integrations.accelerate import get_device
from transformers.models.auto.auto_factory import _get_model_class
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer

from mxfp4_core.checkpoint import TensorInfo, read_header
from mxfp4_core.errors import ConfigError
from mxfp4_core.loader import check_free
from mxfp4_transformers.sharding import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils.quantization_config import QuantizationConfigMixin


def register(method: str, config: type[QuantizationConfigMixin], quantizer: type[HfQuantizer]) -> None:
    """Make ``method`` known to ``from_pretrained``; doing it again changes nothing.

    transformers has no entry points and refuses a second registration, so this looks before it registers.
    A config that is given together with a checkpoint which is quantised already is dropped, except for the
    classes in ``LOADING_ATTRIBUTES_CONFIG_TYPES``: there is no other way to choose a backend for such a
    checkpoint, nor to notice that the two contradict each other.

    Raises:
        ConfigError: another package has that name.
    """
    for mapping, ours in (
        (auto.AUTO_QUANTIZATION_CONFIG_MAPPING, config),
        (auto.AUTO_QUANTIZER_MAPPING, quantizer),
    ):
        check_free(method, mapping.get(method), ours, engine="transformers")
    if auto.AUTO_QUANTIZATION_CONFIG_MAPPING.get(method) is not config:
        auto.register_quantization_config(method)(config)
    if auto.AUTO_QUANTIZER_MAPPING.get(method) is not quantizer:
        auto.register_quantizer(method)(quantizer)
    if config not in auto.LOADING_ATTRIBUTES_CONFIG_TYPES:
        auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*auto.LOADING_ATTRIBUTES_CONFIG_TYPES, config)


def class_of(auto_class: Any, config: Any, path: Path, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return the class of model that an Auto class chooses, with the config that it takes.

    An Auto class wants a path, and a model that is given a state dict may have none: so the choice is made here.
    """
    mapping = getattr(auto_class, "_model_mapping", None)
    if mapping is None:
        return auto_class, config
    remote = getattr(config, "auto_map", {}).get(auto_class.__name__)
    if remote and trust_remote_code:
        return get_class_from_dynamic_module(remote, path), config
    if type(config) not in mapping:
        raise ConfigError(
            f"{auto_class.__name__} cannot load {path}",
            seen=f"a {type(config).__name__}",
            rule="an Auto class knows the kinds of model that it loads",
            fix="pass the auto_class, or the class of model, that belongs to it",
        )
    model_class: Any = _get_model_class(config, mapping)
    text = config.sub_configs.get("text_config")
    if text is not None and getattr(model_class, "config_class", None) == text:
        config = config.get_text_config()
    return model_class, config


def headers(files: Sequence[str] | None) -> dict[str, TensorInfo]:
    """Read what the safetensors files say about their tensors; empty for other formats.

    Args:
        files: what ``from_pretrained`` resolved, or None where it was given a state dict.
    """
    found: dict[str, TensorInfo] = {}
    for path in files or ():
        if str(path).endswith(".safetensors"):
            found |= read_header(Path(path))[0]
    return found


def device_of(device_map: dict[str, Any] | None, name: str) -> torch.device:
    """Return the device on which transformers puts a parameter."""
    return torch.device(get_device(device_map, name, valid_torch_device=True))


def place_of(device_map: dict[str, Any], name: str) -> str:
    """Return what a ``device_map`` says about a parameter: a device, or ``disk``."""
    return str(get_device(device_map, name))


def dtype_of(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype that a model is loaded in, which its config has; ``model.dtype`` is that of its first parameter.

    XLNet makes its first parameter in float32, whatever it is asked for.
    """
    told = getattr(model.config, "dtype", None)
    found = getattr(torch, told, None) if isinstance(told, str) else told
    return found if isinstance(found, torch.dtype) else model.dtype


def forget(model: PreTrainedModel) -> None:
    """Take back the mark of a quantised model that transformers leaves in configs: Jamba and others compute by it."""
    for module in model.modules():
        vars(getattr(module, "config", None) or module).pop("_is_quantized", None)


def ranks_of(model: PreTrainedModel) -> Ranks | None:
    """Say how ``from_pretrained`` was asked to spread a model over processes; None: not at all.

    Raises:
        ConfigError: in a way in which MXFP4 weights cannot be spread.
    """
    asked: Any = getattr(model.config, "distributed_config", None)
    sizes = {
        name: getattr(asked, f"{name}_size", None) or 1 for name in ("tp", "ep", "fsdp", "pp", "dp_replicate")
    }
    if set(sizes.values()) == {1}:
        return None
    tp, experts = sizes["tp"], sizes["ep"] > 1 or bool(getattr(asked, "enable_expert_parallel", False))
    others = [f"{name}_size={size}" for name, size in sizes.items() if name not in ("tp", "ep") and size > 1]
    if others or tp < 2 or sizes["ep"] not in (1, tp) or distributed.get_world_size() != tp:
        raise ConfigError(
            "from_pretrained cannot spread MXFP4 weights like this",
            seen=", ".join(others)
            or f"tp_size={tp}, ep_size={sizes['ep']}, {distributed.get_world_size()} processes",
            rule="all processes share each weight: tp_size is their number, and ep_size that or 1",
            fix="ask for tensor or expert parallelism over all processes, or use device_map",
        )
    own: Any = model
    plan = _overridden(own._tp_plan, asked.tp_plan, merged=hasattr(asked, "ep_size"))
    if experts and hasattr(asked, "ep_size"):
        found = {**own._ep_plan, **(asked.ep_plan or {})}
        covered = [re.compile(rf"{re.escape(rule)}(\..+)?").fullmatch for rule in found]
        plan = {
            rule: style for rule, style in plan.items() if not any(match(rule) for match in covered)
        } | found
    elif experts:
        plan = own._ep_plan
    styles = {
        name: style
        for name, _ in (*model.named_modules(), *model.named_parameters())
        if (style := _style(name, plan)) is not None
    }
    return Ranks(distributed.get_rank(), tp, styles)


def _overridden(plan: dict[str, str], given: Any, *, merged: bool) -> dict[str, str]:
    if not isinstance(given, dict):
        return plan
    return {**plan, **given} if merged and given else given


def _style(name: str, plan: dict[str, str]) -> str | None:
    """Return the style that a plan has for a module or a parameter under just this name."""
    return plan.get(replace_layer_number_by_wildcard(name))


def local(tensor: Any) -> Any:
    """Return what lies here of a tensor that transformers has spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def group_to_sum(model: Any, path: str, styles: Mapping[str, str]) -> Any:
    """Return the processes whose results for a stack of experts are to be summed, or None where transformers does it.

    transformers 5.17 sums where it finds parameters that it has spread itself; later releases send tokens to experts.
    """
    if styles.get(path) != "moe_tp_experts":
        return None
    mesh = model._device_mesh
    return (mesh["tp"] if mesh.ndim > 1 else mesh).get_group()


def summed(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    """Sum a result over processes; each takes the gradient as it is."""
    return cast(torch.Tensor, tensor_parallel._AllReduceForward.apply(tensor, group))


def summed_backward(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    """Return a tensor whose gradient is summed over processes."""
    if not (tensor.requires_grad and torch.is_grad_enabled()):
        return tensor
    return cast(torch.Tensor, tensor_parallel._AllReduceBackward.apply(tensor, group))


def materialised(entry: Any) -> torch.Tensor:
    """Return the tensor behind an entry of ``collected_tensors``: a future, a callable or the tensor."""
    if isinstance(entry, torch.Tensor):
        return entry
    value = entry.result() if hasattr(entry, "result") else entry()
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"the loader gave {type(value).__name__} instead of a tensor")
    return value
