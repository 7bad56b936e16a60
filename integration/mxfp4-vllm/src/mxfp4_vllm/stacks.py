"""Loaders of experts that take one expert, or all of them at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def whole_stacks(weight_loader: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loader of experts that takes all of them at once as well, which the model of gpt-oss hands over.

    Args:
        weight_loader: vLLM's own, which wants the number of an expert.
    """

    @functools.wraps(weight_loader)
    def load(param: Any, loaded_weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # The models call by name, and vLLM's reload by position.
        said = {
            **dict(zip(("weight_name", "shard_id", "expert_id", "return_success"), args, strict=False)),
            **kwargs,
        }
        if said.get("expert_id", 0) is not None:
            return weight_loader(param, loaded_weight, *args, **kwargs)
        place = param.data
        for axis, size in enumerate(loaded_weight.shape):
            place = place.narrow(axis, 0, size)
        place.copy_(loaded_weight)
        return True if said.get("return_success") else None

    return load


__all__ = ["whole_stacks"]
