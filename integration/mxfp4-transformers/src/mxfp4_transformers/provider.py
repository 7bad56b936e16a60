"""What transformers itself knows about the weights of a model: what the model provider asks where no table says it.

The model is built from its config alone, on the meta device: no weight, no network, and none of the code that may
lie in a checkpoint. `describe` does that for the commands; the loader, which has the model already, calls
`view.view_of`. Both get the same view, and so decide alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mxfp4_core.errors import ModelError
from mxfp4_core.naming import Headers, ModelView, check_belongs
from mxfp4_transformers import meta

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def describe(config: Mapping[str, Any], headers: Headers) -> ModelView | None:
    """Build the model of a config on the meta device, and say what its weights are.

    Args:
        config: contents of config.json; ``model_type`` and ``architectures`` choose the class.
        headers: the tensors of the checkpoint, in high precision.

    Returns:
        None where transformers has no such class.

    Raises:
        ModelError: the config does not describe a model, or not the one that the tensors belong to.
    """
    kind = meta.class_of(config)
    if kind is None:
        return None
    try:
        model = meta.empty(kind, config)
    except Exception as error:  # a config is any JSON: whatever its class raises means the same to us
        raise ModelError(
            f"{kind.__name__} cannot be built from config.json",
            seen=f"{type(error).__name__}: {error}",
            rule=f"config.json describes a model of transformers {meta.VERSION}",
            fix="correct config.json",
        ) from error
    return described(model, headers)


def described(model: PreTrainedModel, headers: Headers) -> ModelView:
    """Return the view of a model, after checking that it is the one that the tensors belong to.

    Raises:
        ModelError: shapes differ, or most tensors have no place in the model.
    """
    from mxfp4_transformers.view import view_of

    view = view_of(model, headers, writing=True)
    check_belongs(view, headers, moved=True)
    return view


__all__ = ["describe", "described"]
