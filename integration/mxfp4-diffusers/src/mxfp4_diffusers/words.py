"""What there is to know about a model: which weights are MXFP4, how much each would hurt, which ones others keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mxfp4_core.modules import sensitivities as measured
from mxfp4_core.modules import summary as table
from mxfp4_diffusers.config import Mxfp4CoreConfig
from mxfp4_diffusers_models.view import view_of


def summary(model: Any) -> str:
    """Return a table of a model's weights: MXFP4 or kept, where, how large, by which profile and backend, and why.

    Blocks that differ in their numbers only share a line. ``print(model)`` has the same modules, one by one.

    Args:
        model: loaded by ``from_pretrained`` with this package.

    Returns:
        A heading with the counts, then one line for each group, in the order of the model.
    """
    return table(model, getattr(getattr(model, "hf_quantizer", None), "plan", None))


def sensitivities(
    model: Any, run: Callable[[], Tensor], config: Mxfp4CoreConfig | None = None
) -> dict[str, float]:
    """Return how far the output moves for each weight that a config quantises, if that one alone is quantised.

    Args:
        model: of diffusers, in high precision.
        run: as for `mxfp4_core.modules.sensitivities`: computes with the model, on fixed inputs.
        config: what to quantise, and how.

    Returns:
        By name of the weight; ``mxfp4 plan --budget SIZE --hurts FILE`` takes it as JSON.

    Raises:
        ConfigError, PatternError, ShapeError, BackendError, NonFiniteError: as the function of the core.
    """
    return measured(model, run, None if config is None else config.core, view=view_of(model, {}))


__all__ = ["sensitivities", "summary"]
