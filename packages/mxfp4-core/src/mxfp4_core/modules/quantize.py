"""Quantise a model that is in memory, one module after the other, in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend.problem import Problem
from mxfp4_core.backend.quantizers import DeviceQuantizers
from mxfp4_core.backend.selection import Selection
from mxfp4_core.backend.usual import settled
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import check_type
from mxfp4_core.modules.ask import chosen_backends, select_for
from mxfp4_core.modules.base import Mxfp4Module
from mxfp4_core.modules.empty import empty_module
from mxfp4_core.modules.held import Mxfp4Held
from mxfp4_core.modules.model_plan import ModelPlan
from mxfp4_core.modules.planning import plan_model
from mxfp4_core.modules.sites import Site
from mxfp4_core.modules.table import summary
from mxfp4_core.modules.weights import Weight
from mxfp4_core.naming.view import ModelView


@dataclass(frozen=True)
class Quantised:
    """What `quantize_` did to a model; ``str()`` of it is a table.

    Attributes:
        model: the model, the same object.
        plan: what became MXFP4, what did not, and why.
        selections: which backend each MXFP4 module got, with the verdicts of all others, by its name.
    """

    model: nn.Module
    plan: ModelPlan
    selections: Mapping[str, Selection] = field(default_factory=dict[str, Selection])

    @property
    def refused(self) -> Mapping[str, str]:
        """Modules that could not be quantised and were kept by ``refused="keep"``, each with the reason."""
        return self.plan.refused

    def __str__(self) -> str:
        return summary(self.model, self.plan)


def quantize_(
    model: nn.Module,
    config: Mxfp4Config | None = None,
    *,
    refused: str | None = None,
    dtype: torch.dtype | None = None,
    view: ModelView | None = None,
) -> Quantised:
    """Replace the linears and stacks of experts of a model by MXFP4 modules, in place, ready to compute.

    Every weight is decided about, and every backend asked, before the first weight is touched. Then one module after
    the other is quantised where it is, prepared for its backend, and its old weight let go, so the extra memory is
    that of one module. The bytes are those that a load with the same config makes.

    Args:
        model: on the devices where it will run; its buffers and everything kept stay as they are.
        config: what to quantise, by which rule, for which backend; the default takes every linear and expert weight
            but output heads, embeddings and routers.
        refused: ``"error"`` or ``"keep"``, instead of the config's: what happens to modules that no backend takes or
            that have no MXFP4 module.
        dtype: of the activations; that of the model's weights if None.
        view: facts about the model that its modules do not tell, from the library that made it.

    Returns:
        The model, what was decided and which backend computes.

    Raises:
        ConfigError, ShapeError, BackendError: as `plan_model`; the model is as it was.
        NonFiniteError: NaN or infinity in a weight; modules before it are quantised already.
    """
    check_type(model, nn.Module, "model")
    config = config or Mxfp4Config()
    check_type(config, Mxfp4Config, "config")
    if refused is not None:
        said = config.model_dump(mode="json", exclude_unset=True)
        config = Mxfp4Config.from_dict({**said, "refused": refused})
    dtype = dtype or _dtype_of(model)
    devices = list(dict.fromkeys(str(parameter.device) for parameter in model.parameters()))
    config = settled(config, devices)
    plan = plan_model(model, config, view, devices=devices, dtype=dtype)
    quantizers = _quantizers(model, plan, config, devices, dtype)
    selections: dict[str, Selection] = {}
    answers: dict[Problem, Selection] = {}
    for site in plan.sites:
        module = empty_module(
            model,
            site,
            activation=plan.activation_of(site),
            profile=plan.profile_of(site),
            format=plan.format_of(site),
            dtype=dtype,
        )
        _fill(module, site, plan.weights, quantizers, config)
        module.train(site.module.training)
        if isinstance(module, Mxfp4Held):
            module.prepare(None, dtype=dtype, name=site.path)
        else:
            selection = selections[site.path] = select_for(module.question(dtype), config, answers)
            options = selection.problem.options
            module.prepare(selection.backend, dtype=dtype, consume=True, options=options, name=site.path)
        model.set_submodule(site.path, module)
        _let_go(site)
    return Quantised(model, plan, selections)


def _let_go(site: Site) -> None:
    """Free the weights of a module that the plan keeps as a description."""
    for name in site.weights:
        site.module._parameters[name] = nn.Parameter(site.module._parameters[name].to("meta"), False)  # type: ignore[union-attr]


def _quantizers(
    model: nn.Module, plan: ModelPlan, config: Mxfp4Config, devices: list[str], dtype: torch.dtype
) -> DeviceQuantizers:
    asked = nn.Module()
    for number, site in enumerate(plan.sites):
        activation, format = plan.activation_of(site), plan.format_of(site)
        asked.add_module(
            str(number), empty_module(model, site, activation=activation, format=format, dtype=dtype)
        )
    return DeviceQuantizers(chosen_backends(asked, config, devices, dtype))


def _fill(
    module: Mxfp4Module,
    site: Site,
    weights: Mapping[str, Weight],
    quantizers: DeviceQuantizers,
    config: Mxfp4Config,
) -> None:
    own = dict(site.module.named_parameters(recurse=False))
    for matrix, name in module.matrices.items():
        weight = weights[site.name(name)]
        values = own[name].detach()
        values = values.transpose(-1, -2) if weight.transposed else values
        parts = weight.empty(values.device)
        for index in range(values.shape[0]) if values.ndim == 3 else [None]:
            piece = values if index is None else values[index]
            label = weight.name if index is None else f"{weight.name}[{index}]"
            into = {
                p.name: parts[p.name] if index is None else parts[p.name][index]
                for p in weight.kind.weight_parts
            }
            quantizers.fill(
                piece,
                into,
                profile=weight.profile,
                format=weight.kind,
                nonfinite=config.nonfinite,
                name=label,
            )
        bias = own.get(module._bias_name(name))
        tensor = MxTensor.from_parts(weight.kind, parts, weight.shape, weight.profile)
        module.fill(matrix, tensor, None if bias is None else bias.detach())


def _dtype_of(model: nn.Module) -> torch.dtype:
    floats = (p.dtype for p in model.parameters() if p.is_floating_point() and p.ndim > 1)
    return next(floats, torch.bfloat16)


__all__ = ["Quantised", "quantize_"]
