"""The first and the last denoising steps in high precision, the others with quantised weights."""

from __future__ import annotations

import functools
import math
from typing import Any

from torch import nn

from mxfp4_core.errors import ConfigError


def precise_steps(
    pipe: Any, precise: nn.Module, *, first: float = 0.08, last: float = 1, component: str = "transformer"
) -> None:
    """Let another model, in high precision, compute the first and the last steps of a pipeline.

    Both models are in memory then. The step is read off the scheduler of the pipeline, so that several calls in one
    step, for guidance, count once. What is saved of the pipeline is the quantised model.

    Args:
        pipe: with a quantised component.
        precise: the same model in high precision, on the same device; it is not moved with the pipeline.
        first: steps at the beginning: a number from 1 on, or a share of all steps, rounded up.
        last: likewise, at the end.
        component: which model of the pipeline.

    Raises:
        ConfigError: the pipeline has no such model, its scheduler does not count steps, or ``precise`` is another kind.
    """
    quantised, scheduler = getattr(pipe, component, None), getattr(pipe, "scheduler", None)
    if not isinstance(quantised, nn.Module) or type(quantised) is not type(precise):
        raise ConfigError(
            f"the component {component!r} cannot be computed by another model at times",
            seen=f"{type(quantised).__name__} in the pipeline, {type(precise).__name__} beside it",
            rule="both are the same model, one of them in high precision",
            fix="load the component once more without quantization_config, and pass it",
        )
    if not hasattr(scheduler, "step_index"):
        raise ConfigError(
            "the steps of this pipeline cannot be counted",
            seen=f"{type(scheduler).__name__} without a step_index",
            rule="the scheduler of the pipeline says which step it is in",
            fix="use another scheduler, such as FlowMatchEulerDiscreteScheduler",
        )
    if first < 0 or last < 0:
        raise ConfigError(
            "a number of steps cannot be negative",
            seen=f"first={first}, last={last}",
            rule="steps are counted from 0 on, or are a share below 1",
            fix="pass 0 for none",
        )
    usual = type(quantised).forward

    @functools.wraps(usual)
    def forward(*args: Any, **kwargs: Any) -> Any:
        total, step = len(pipe.scheduler.timesteps), pipe.scheduler.step_index or 0
        if step < _steps(first, total) or step >= total - _steps(last, total):
            return precise(*args, **kwargs)
        return usual(quantised, *args, **kwargs)

    quantised.forward = forward


def _steps(asked: float, total: int) -> int:
    return math.ceil(round(asked * total, 9)) if asked < 1 else int(asked)  # 0.07 * 100 is 7, and a bit


__all__ = ["precise_steps"]
