"""What transformers itself knows about the weights of a model: what the model provider asks where no table says it.

The model is built from its config alone, on the meta device: no weight, no network, and none of the code that may
lie in a checkpoint. `describe` does that for the commands; the loader, which has the model already, calls
`view.view_of`. Both get the same view, and so decide alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mxfp4_core.errors import ModelError
from mxfp4_core.naming import Headers, ModelView
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
    pieces = Counter(name for stored in view.tensors.values() for name in stored.parameters)
    for stored in view.tensors.values():
        if len(stored.parameters) > 1:
            continue
        parameter, shape = view.parameters[stored.parameters[0]], headers[stored.name][1]
        whole = len(shape) == len(parameter.shape) and pieces[parameter.name] == 1
        if whole and sorted(shape) != sorted(parameter.shape):
            _refuse(
                view,
                f"{stored.name} is {list(shape)}",
                f"{parameter.name} is {list(parameter.shape)} by config.json",
            )
    lost = [name for name in headers if name not in view.tensors]
    if 2 * len(lost) > len(headers):
        _refuse(
            view,
            f"{len(lost)} of {len(headers)} tensors have no place in it, {lost[0]} first",
            "most tensors of a checkpoint are loaded",
        )
    return view


def _refuse(view: ModelView, seen: str, rule: str) -> None:
    raise ModelError(
        f"the checkpoint is not one of {view.model}",
        seen=seen,
        rule=rule,
        fix="use the config.json that belongs to the checkpoint",
    )


__all__ = ["describe", "described"]
