"""The parameters that vLLM sees of a layer whose weights are MXFP4, and what happens to what it loads into them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mxfp4_core.backend import Matrix
from mxfp4_core.loader import (
    EngineLayer,
    device_of_new_tensors,
    has_memory,
    hollow,
    placeholder,
    register_parameter,
    widening,
)
from mxfp4_vllm import compat


class Hosted:
    """One layer of vLLM and the layer of the core behind it.

    Args:
        own: the layer of the core.
        names: what vLLM calls each weight of the layer, by name of the matrix in the core.
    """

    def __init__(self, own: EngineLayer, names: Mapping[Matrix, str]) -> None:
        self.own, self._names = own, names
        self._biases: Mapping[str, str] = {}
        self._shown = compat.has_adapters()

    def register(self, layer: torch.nn.Module, weight_loader: Callable[..., Any], **attributes: Any) -> None:
        """Give the layer of vLLM a parameter without memory for each place, with a loader that fills the module.

        Args:
            layer: of vLLM.
            weight_loader: its own loader.
            attributes: what else vLLM's loaders look for on a parameter.
        """
        for place in self.own.places():
            loader = _aside(layer, self.own.loader(place, weight_loader), weight_loader)
            name = f"{self._names[place.matrix]}{place.suffix}"
            register_parameter(layer, name, placeholder(place), weight_loader=loader, **attributes)

    def register_biases(
        self,
        layer: torch.nn.Module,
        names: Mapping[str, str],
        weight_loader: Callable[..., Any],
        **attributes: Any,
    ) -> None:
        """Give the layer of vLLM the biases of the module, in one memory with them.

        Args:
            layer: of vLLM.
            names: what vLLM calls each, by its name in the module.
            weight_loader: vLLM's own.
            attributes: as for `register`.
        """
        self._biases = names
        for own, name in names.items():
            bias = torch.zeros_like(getattr(self.own.module, own), device=device_of_new_tensors())
            setattr(self.own.module, own, bias)
            loader = _aside(layer, self.own.bias_loader(own, weight_loader), weight_loader)
            register_parameter(layer, name, bias, weight_loader=loader, **attributes)

    def finish(self, layer: torch.nn.Module) -> None:
        """Take what vLLM loaded, and let the module compute.

        Args:
            layer: of vLLM.
        """
        held = {
            place: getattr(layer, f"{self._names[place.matrix]}{place.suffix}") for place in self.own.places()
        }
        for matrix in dict.fromkeys(place.matrix for place in held):
            whole = {place.part: each.data for place, each in held.items() if place.matrix == matrix}
            if all(map(has_memory, whole.values())):
                self.own.put(matrix, whole)
        # After the weights, which begin another load: it starts from the biases of the last one.
        for own, name in self._biases.items():
            bias, now = getattr(self.own.module, own), getattr(layer, name).data
            if now.data_ptr() != bias.data_ptr():  # vLLM loads again by itself, into new parameters
                bias.copy_(now)
        self.own.finish()
        for place, each in held.items() if self._shown else ():
            seen = hollow(each, self.own.module.where)  # adapters are put on the device of the weight
            register_parameter(layer, f"{self._names[place.matrix]}{place.suffix}", seen, **vars(each))

    def widening(
        self, make: Callable[[], object], loaded: Callable[[], object]
    ) -> Callable[[torch.nn.Module], None]:
        """Return what is to be done once such a layer is loaded that vLLM computes by itself, in high precision.

        Args:
            make: makes vLLM's own parameters.
            loaded: hears that vLLM has loaded the model.
        """

        def finish(layer: torch.nn.Module) -> None:
            loaded()
            self.finish(layer)

        return widening(self.own, make, finish, self._names, self._biases)


def _aside(
    layer: torch.nn.Module, ours: Callable[..., Any], weight_loader: Callable[..., Any]
) -> Callable[..., Any]:
    """Return our loader, which leaves the call to vLLM's own while vLLM loads the layer again by itself."""

    @functools.wraps(weight_loader)
    def load(*args: Any, **kwargs: Any) -> Any:
        return (weight_loader if compat.reloading(layer) else ours)(*args, **kwargs)

    return load


__all__ = ["Hosted"]
