"""The only module that touches what diffusers changes between releases, or keeps to itself.

Checked with 0.39.0, 0.41.0 and 0.42.1. What is done about it:

* There is no function to register a method: two dictionaries are written. A name that another package has is an error
  for ours, and left to it for the dialects of others.
* Before 0.39 a quantizer is neither asked about the names of a checkpoint nor given the tensors of a shard: refused.
* Telemetry reads ``quant_method.value``, and ``repr`` of a config calls ``to_diff_dict``: `Method` and the config have
  them.
* A config that is given beside a checkpoint which is quantised already is dropped, with a warning of diffusers': what
  belongs to the machine is said with `mxfp4_diffusers.machine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from accelerate.utils import CustomDtype
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer

from mxfp4_core.checkpoint import TensorInfo, read_header
from mxfp4_core.errors import ConfigError
from mxfp4_core.loader import check_free
from mxfp4_core.modules import Weight
from mxfp4_core.naming import Headers

VERSION: Final[str] = diffusers.__version__
_HOOKS: Final = ("maybe_update_loaded_keys", "maybe_update_state_dict")


class Method(str):
    """Name of a method, with the ``value`` that diffusers expects of an enumeration."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The name."""
        return str(self)


def check_version() -> None:
    """Check that the installed diffusers asks what a load has to answer.

    Raises:
        ConfigError: it does not.
    """
    if absent := [name for name in _HOOKS if not hasattr(DiffusersQuantizer, name)]:
        raise ConfigError(
            "mxfp4_diffusers cannot be used with this diffusers",
            seen=f"diffusers {VERSION}, whose quantizers have no {' and no '.join(absent)}",
            rule="diffusers 0.39 to 0.42 lets a quantizer see what a checkpoint holds before it is read",
            fix="pip install 'diffusers>=0.39,<0.43'",
        )


def register(method: str, config: type[Any], quantizer: type[DiffusersQuantizer]) -> None:
    """Make ``method`` known to ``from_pretrained``; doing it again changes nothing.

    Raises:
        ConfigError: another package has that name.
    """
    pairs = ((auto.AUTO_QUANTIZATION_CONFIG_MAPPING, config), (auto.AUTO_QUANTIZER_MAPPING, quantizer))
    for mapping, ours in pairs:
        check_free(method, mapping.get(method), ours, engine="diffusers")
    for mapping, ours in pairs:
        mapping[method] = ours


def register_free(method: str, config: type[Any], quantizer: type[DiffusersQuantizer]) -> bool:
    """Make the method of another dialect known, unless diffusers or a package of its own serves it."""
    if method in auto.AUTO_QUANTIZER_MAPPING or method in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        return auto.AUTO_QUANTIZER_MAPPING.get(method) is quantizer
    register(method, config, quantizer)
    return True


def size_word(weight: Weight) -> CustomDtype:
    """Return what accelerate takes for the dtype of a weight when it shares a model out."""
    return CustomDtype.INT4 if weight.kind.parts[0].values == 2 else CustomDtype.FP8


def headers(files: Sequence[Any]) -> dict[str, TensorInfo]:
    """Read what the safetensors files say about their tensors; empty for other kinds of files.

    Args:
        files: what ``from_pretrained`` resolved.
    """
    found: dict[str, TensorInfo] = {}
    for path in files:
        if str(path).endswith(".safetensors"):
            found |= read_header(Path(path))[0]
    return found


def headers_of(tensors: Mapping[str, torch.Tensor]) -> Headers:
    """Return what a header would say about tensors that diffusers has read and renamed by itself.

    Args:
        tensors: of a single file, by the names of the model.
    """
    words = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
    return {
        name: (words.get(each.dtype, str(each.dtype)), tuple(each.shape)) for name, each in tensors.items()
    }


def forget(model: Any) -> None:
    """Take what it says about quantisation out of the config of a model; diffusers has no function for that."""
    config = {key: value for key, value in model.config.items() if key != "quantization_config"}
    model._internal_dict = type(model.config)(config)


__all__ = [
    "VERSION",
    "Method",
    "check_version",
    "forget",
    "headers",
    "headers_of",
    "register",
    "register_free",
    "size_word",
]
