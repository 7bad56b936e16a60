"""Models of transformers on the meta device, from config.json alone: no weight, no network, no code of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.generic import ContextManagers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION: Final[str] = transformers.__version__
"""The release of transformers that is installed."""


def class_of(config: Mapping[str, Any]) -> type[PreTrainedModel] | None:
    """Return the class of transformers that a config.json names, or None where it names none of them.

    Args:
        config: contents of config.json. Code that lies in a checkpoint (``auto_map``) is never looked at.
    """
    model_type, named = config.get("model_type"), config.get("architectures")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return None
    name = named[0] if isinstance(named, list) and named else None
    kind: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        return None
    own = getattr(kind, "config_class", None) is CONFIG_MAPPING[model_type]
    return kind if own or name in _classes(model_type) else None


def _classes(model_type: str) -> set[str]:
    """Return the classes that transformers loads a type with; some types have those of another one."""
    mappings = (value for key, value in vars(modeling_auto).items() if key.endswith("_MAPPING_NAMES"))
    found = (mapping.get(model_type, ()) for mapping in mappings if isinstance(mapping, dict))
    return {name for names in found for name in ([names] if isinstance(names, str) else names)}


def empty(kind: type[PreTrainedModel], config: Mapping[str, Any]) -> PreTrainedModel:
    """Build a model on the meta device, as ``from_pretrained`` does before it loads.

    Args:
        kind: its class.
        config: contents of config.json; what it says about quantisation is left out.
    """
    given = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    # transformers writes infinity and NaN as {"__float__": "Infinity"}, and reads them so from a file only.
    reader: Any = CONFIG_MAPPING[config["model_type"]]
    described = reader.from_dict(reader._decode_special_floats(given))
    described._attn_implementation = "eager"  # every model has it, whatever is installed
    if getattr(described, "use_pretrained_backbone", False):
        described.use_pretrained_backbone = False  # its weights would be downloaded
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with ContextManagers(kind.get_init_context(torch.float32, False, False, False)):
            return kind(described)
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
