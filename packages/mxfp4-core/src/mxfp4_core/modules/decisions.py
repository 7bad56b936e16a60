"""What a config says about every parameter of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

from torch import nn

from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.modules.model_view import ModelView
from mxfp4_core.modules.refusals import Refusal, refuse
from mxfp4_core.modules.sites import Site
from mxfp4_core.naming.decision import Decision


def decide(
    model: nn.Module, config: Mxfp4Config, view: ModelView, sites: Iterable[Site], *, check: bool = True
) -> dict[str, Decision]:
    """Return the decision about every parameter, by its name in the model.

    Args:
        model: its parameters are what is decided about.
        config: with the patterns.
        view: facts about the model.
        sites: of the model; they know which shapes are transposed.
        check: raise for a pattern that matches nothing.
    """
    logical = {site.name(name): shape for site in sites for name, shape in site.weights.items()}
    # Of a tied pair both names count: patterns may name either.
    parameters = model.named_parameters(remove_duplicate=False)
    shapes = {name: logical.get(name, tuple(p.shape)) for name, p in parameters}
    resolver = view.resolver(config)
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


def why_kept(view: ModelView, site: Site, decisions: Mapping[str, Decision]) -> str:
    """Return why a module stays in high precision, empty where it is to be quantised.

    Raises:
        ConfigError: the config quantises one weight of the module and keeps another, or asks for one that is tied.
    """
    if set(decisions) & set(view.tied):
        if asked := [
            decision.pattern for decision in decisions.values() if decision.quantize and decision.pattern
        ]:
            _cannot(site, f"{asked[0]!r} asks for it, and it shares its weight with another module")
        return "shares its weight with another module"
    kept = [decision for decision in decisions.values() if not decision.quantize]
    if kept and len(kept) < len(decisions):
        _cannot(site, f"the config keeps {kept[0].name} ({kept[0].reason}) and quantises the other")
    if kept:
        return kept[0].reason
    return view.pinned.get(site.path, "")


def _cannot(site: Site, why: str) -> NoReturn:
    refuse([Refusal(site.path, site.path, why)], lambda patterns: True)


__all__ = ["decide", "plain_reasons", "why_kept"]
