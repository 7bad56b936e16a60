"""What a config says about every parameter of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from torch import nn

from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.modules.refusals import Refusal, refuse
from mxfp4_core.modules.sites import Site
from mxfp4_core.naming.decision import Decision
from mxfp4_core.naming.resolver import Resolver
from mxfp4_core.naming.view import ModelView


def decide(
    config: Mxfp4Config, view: ModelView, *, check: bool = True, stored: bool = False
) -> dict[str, Decision]:
    """Return the decision about every parameter, by its name in the model.

    Args:
        config: with the patterns.
        view: what each parameter of the model is. Of a tied pair both names count: patterns may name either.
        check: raise for a pattern that matches nothing.
        stored: as for `Resolver.for_model`.
    """
    shapes = {name: parameter.shape for name, parameter in view.parameters.items()}
    resolver = Resolver.for_model(config, view.config, view=view, stored=stored)
    if check:
        return dict(zip(shapes, resolver.decide_all(shapes.items()), strict=True))
    return {name: resolver.decide(name, shape) for name, shape in shapes.items()}


def plain_reasons(model: nn.Module, decisions: Mapping[str, Decision]) -> dict[str, str]:
    """Return the reason of each decision, by name of the parameter."""
    # Norms and biases are vectors under many names: one reason keeps them together in a report.
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    return {
        name: "a vector has no rows to quantise" if name in vectors else decision.reason
        for name, decision in decisions.items()
    }


def why_kept(site: Site, decisions: Mapping[str, Decision]) -> str:
    """Return why a module stays in high precision, empty where it is to be quantised.

    Raises:
        ConfigError: the config quantises one weight of the module and keeps another.
    """
    kept = [decision for decision in decisions.values() if not decision.quantize]
    if kept and len(kept) < len(decisions):
        _cannot(site, f"the config keeps {kept[0].name} ({kept[0].reason}) and quantises the other")
    return kept[0].reason if kept else ""


def _cannot(site: Site, why: str) -> NoReturn:
    refuse([Refusal(site.path, site.path, why)], lambda patterns: True)


__all__ = ["decide", "plain_reasons", "why_kept"]
