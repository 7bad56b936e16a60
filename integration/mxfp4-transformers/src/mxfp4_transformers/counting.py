"""How many parameters a model has, where its weights are bytes in buffers."""

from __future__ import annotations

from math import prod
from typing import Any

from mxfp4_core.modules import ModelPlan


class LogicalCount:
    """Stands on a loaded model as its ``num_parameters``: MXFP4 weights count as the parameters that they stand for.

    It is copied and pickled with the model.

    Args:
        model: loaded by this package.
        plan: what became MXFP4 in it.
    """

    def __init__(self, model: Any, plan: ModelPlan) -> None:
        self.model, self.frozen = model, 0
        for site in plan.sites:
            beside = site.module.named_parameters(recurse=False)
            biases = (
                0 if site.held else sum(each.numel() for name, each in beside if name not in site.weights)
            )
            self.frozen += biases + sum(prod(shape) for shape in site.weights.values())

    def __call__(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return the number of parameters, as transformers counts them in a model in high precision."""
        others: int = type(self.model).num_parameters(self.model, only_trainable, exclude_embeddings)
        return others if only_trainable else others + self.frozen


__all__ = ["LogicalCount"]
