"""Models of diffusers on the meta device, from config.json alone: no weight, no network, no code of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import diffusers
from accelerate import init_empty_weights

from mxfp4_core.errors import ModelError
from mxfp4_core.naming import Headers, ModelView, check_belongs
from mxfp4_diffusers_models.view import VERSION, view_of

if TYPE_CHECKING:
    from diffusers import ModelMixin


def class_of(config: Mapping[str, Any]) -> type[ModelMixin] | None:
    """Return the class of diffusers that a config.json names, or None where it names none of them."""
    kind: Any = getattr(diffusers, str(config.get("_class_name")), None)
    return kind if isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin) else None


def described(kind: type[ModelMixin], config: Mapping[str, Any], headers: Headers) -> ModelView:
    """Build a model without memory and return its view, after checking that the tensors belong to it.

    Args:
        kind: its class.
        config: contents of config.json; what it says about quantisation is left out.
        headers: the tensors of the checkpoint, in high precision.

    Raises:
        ModelError: the class refuses the config, shapes differ, or most tensors have no place in the model.
    """
    given = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    try:
        with init_empty_weights():
            model = kind.from_config(given)
    except Exception as error:  # a config is any JSON: whatever its class raises means the same to us
        raise ModelError(
            f"{kind.__name__} cannot be built from config.json",
            seen=f"{type(error).__name__}: {error}",
            rule=f"config.json describes a model of diffusers {VERSION}",
            fix="correct config.json",
        ) from error
    view = view_of(model, headers)
    check_belongs(view, headers)
    return view


__all__ = ["class_of", "described"]
