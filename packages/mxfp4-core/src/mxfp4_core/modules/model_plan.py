"""Which modules of a model get MXFP4 weights, which do not, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mxfp4_core.config.words import Activation
from mxfp4_core.modules.sites import Site
from mxfp4_core.modules.weights import Weight


@dataclass
class ModelPlan:
    """What becomes MXFP4 in one model.

    Attributes:
        sites: the modules to replace.
        weights: their weights, by full name.
        reasons: why each linear, stack of experts or other parameter is what it will be, by name.
        profile: the profile of the weights that have none of their own; empty if a checkpoint does not say.
        refused: modules that stay in high precision because they cannot be quantised, by ``refused="keep"``.
        ignore: patterns that keep exactly those.
        activations: how activations are to be quantised, by name of the module.
    """

    sites: list[Site] = field(default_factory=list[Site])
    weights: dict[str, Weight] = field(default_factory=dict[str, Weight])
    reasons: dict[str, str] = field(default_factory=dict[str, str])
    profile: str = ""
    refused: dict[str, str] = field(default_factory=dict[str, str])
    ignore: list[str] = field(default_factory=list[str])
    activations: dict[str, Activation] = field(default_factory=dict[str, Activation])

    def add(
        self,
        site: Site,
        profiles: Mapping[str, str],
        reason: str,
        format: str = "mxfp4",
        activation: Activation = "none",
    ) -> None:
        """Plan to replace a module.

        Args:
            site: the module.
            profiles: the profile of each of its weights, by full name.
            reason: why, for a report.
            format: of its weights.
            activation: how its backend is to quantise activations.
        """
        self.sites.append(site)
        self.activations[site.path] = activation
        self.reasons[site.path] = reason
        for name, shape in site.weights.items():
            full = site.name(name)
            self.weights[full] = Weight(full, shape, site.transposed, profiles[full], format)

    def drop(self, reasons: Mapping[str, str]) -> None:
        """Leave modules in high precision after all, by name, each with the reason."""
        for site in [site for site in self.sites if site.path in reasons]:
            self.sites.remove(site)
            for name in site.weights:
                del self.weights[site.name(name)]
        self.reasons.update(reasons)
        self.refused.update(reasons)

    def reason_of(self, path: str, parameters: Iterable[str]) -> str:
        """Return why a module is what it is, from its own entry or from one of its parameters'."""
        own = [self.reasons.get(f"{path}.{name}", "") for name in parameters]
        return self.reasons.get(path) or next(filter(None, own), "")

    @property
    def profiles(self) -> dict[str, list[str]]:
        """Return the profiles of the weights, by format."""
        found: dict[str, dict[str, None]] = {}
        for weight in self.weights.values():
            found.setdefault(weight.format, {})[weight.profile] = None
        return {format: list(names) for format, names in found.items()}

    def profile_of(self, site: Site) -> str:
        """Return the profile of a module's weights; of several, joined by commas."""
        return ", ".join(dict.fromkeys(self.weights[site.name(name)].profile for name in site.weights))

    def activation_of(self, site: Site) -> Activation:
        """Return how the backend of a module is to quantise activations."""
        return self.activations[site.path]

    def format_of(self, site: Site) -> str:
        """Return the format of a module's weights."""
        return self.weights[site.name(next(iter(site.weights)))].format


__all__ = ["ModelPlan"]
