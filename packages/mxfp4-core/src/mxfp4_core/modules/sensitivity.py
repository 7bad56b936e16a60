"""How much the output of a model changes when one of its weights is quantised: measured, one weight after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mxfp4_core.arithmetic.quantize import quantize
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import ConfigError
from mxfp4_core.modules.model_plan import ModelPlan
from mxfp4_core.modules.planning import plan_model
from mxfp4_core.modules.sites import Site
from mxfp4_core.naming.view import ModelView


def sensitivities(
    model: nn.Module,
    run: Callable[[], Tensor],
    config: Mxfp4Config | None = None,
    *,
    view: ModelView | None = None,
) -> dict[str, float]:
    """Return how far the output moves for each weight that a config quantises, if that one alone is quantised.

    The number is the squared error of the output relative to its square. Each weight is put back before the next one
    is tried, so the model is what it was; the extra memory is twice the largest weight in float32.

    Args:
        model: in high precision, on the device where it runs.
        run: computes with the model and returns a float tensor; the same inputs and noise each time.
        config: what to quantise, and how.
        view: facts about the model that its modules do not tell, from the library that made it.

    Returns:
        By name of the parameter, in the order of the model. `mxfp4 plan --hurts` takes it as a JSON object.

    Raises:
        ConfigError: as `plan_model`, or two runs without a change differ.
        PatternError, ShapeError, BackendError: as `plan_model`.
        NonFiniteError: NaN or infinity in a weight.
    """
    config = config or Mxfp4Config()
    devices = list(dict.fromkeys(str(parameter.device) for parameter in model.parameters()))
    dtype = next(
        (p.dtype for p in model.parameters() if p.is_floating_point() and p.ndim > 1), torch.bfloat16
    )
    plan = plan_model(model, config, view, devices=devices, dtype=dtype)
    with torch.no_grad():
        wanted = run().double()
        if not torch.equal(run().double(), wanted):
            raise ConfigError(
                "the sensitivity of weights cannot be measured",
                seen="two runs of the same model that differ",
                rule="what is run gives the same output for the same weights",
                fix="fix the seeds and the inputs inside of it, and put the model into eval mode",
            )
        size = wanted.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
        return {
            site.name(name): float((_without(site, name, plan, run).double() - wanted).square().sum() / size)
            for site in plan.sites
            for name in site.weights
        }


def _without(site: Site, name: str, plan: ModelPlan, run: Callable[[], Tensor]) -> Tensor:
    """Return the output with one weight rounded."""
    parameter = dict(site.module.named_parameters(recurse=False))[name]
    weight, original = plan.weights[site.name(name)], parameter.data
    values = original.transpose(-1, -2) if site.transposed else original
    made = quantize(values.contiguous(), format=weight.format, profile=weight.profile, tail="pad")
    rounded = made.dequantize(original.dtype)
    try:
        parameter.data = (rounded.transpose(-1, -2) if site.transposed else rounded).contiguous()
        return run()
    finally:
        parameter.data = original


__all__ = ["sensitivities"]
