"""The parameters that SGLang sees of a layer whose weights are MXFP4, and what happens to what it loads into them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mxfp4_core.backend import Matrix
from mxfp4_core.loader import (
    EngineLayer,
    EnginePlace,
    has_memory,
    hollow,
    placeholder,
    register_parameter,
    widening,
)
from mxfp4_core.modules import prepare_model
from mxfp4_sglang.model import Model


class Hosted:
    """One layer of SGLang and the layer of the core behind it.

    Until it is loaded, the layer has a parameter without memory for each part; then ``layer.mxfp4`` is the module that
    computes, and ``layer.weight`` looks like the weight in high precision.

    Args:
        own: the layer of the core.
        names: what SGLang calls each weight of the layer, by name of the matrix in the core.
        model: whose layer it is.
    """

    def __init__(self, own: EngineLayer, names: Mapping[Matrix, str], model: Model) -> None:
        self.own, self._names, self._model = own, names, model
        self._places = {f"{names[place.matrix]}{place.suffix}": place for place in own.places()}

    def register(self, layer: torch.nn.Module, weight_loader: Callable[..., Any], **attributes: Any) -> None:
        """Give the layer a parameter for each place, with a loader that fills the module.

        Args:
            layer: of SGLang.
            weight_loader: its own loader.
            attributes: what else SGLang's loaders look for on a parameter.
        """
        for name, place in self._places.items():
            parameter = register_parameter(layer, name, placeholder(place), **attributes)
            loader = self.own.loader(place, weight_loader)
            vars(parameter)["weight_loader"] = _aside(loader, parameter)
        self._model.hosts(functools.partial(self._take, layer))

    def _take(self, layer: torch.nn.Module) -> None:
        """Take what SGLang put into parameters of its own, past our loaders, or what nobody chose."""
        for name, place in self._places.items():
            given = layer._parameters.get(name)
            if not place.part and given is not None and has_memory(given):
                self.own.put(place.matrix, {"": given.data})
                given.data = hollow(given)
        if self._model.made_up and not self.own.touched:
            self.own.make_up()

    def finish(self, layer: torch.nn.Module, *, stay: bool) -> None:
        """Take what SGLang loaded, and let the module compute.

        Args:
            layer: of SGLang.
            stay: keep the parameters without memory, through which SGLang loads other weights later.

        Raises:
            LoadError: something is missing, or came twice.
        """
        self.own.finish()
        for name in () if stay else self._places:
            layer._parameters.pop(name, None)
        layer.add_module("mxfp4", self.own.module)
        for matrix, name in self._names.items():
            # Before the parameter of that name, which only loaders ask for, by way of `named_parameters`.
            vars(layer)[name] = self.own.module.seen(matrix)

    def widening(self, make: Callable[[], object]) -> Callable[[torch.nn.Module], None]:
        """Return what is to be done once such a layer is loaded that SGLang computes by itself, in high precision.

        Args:
            make: makes SGLang's own parameters.
        """
        module = self.own.module
        biases = dict(
            zip(module.named_biases, (f"{self._names[each]}_bias" for each in module.biases), strict=True)
        )

        def finish(layer: torch.nn.Module) -> None:
            self._model.loaded()
            self.own.finish()

        return widening(self.own, make, finish, self._names, biases)

    def ready(self) -> torch.nn.Module:
        """Return the module, prepared again where SGLang has moved it to another device since."""
        module = self.own.module
        if module.backend is None:
            how = self._model.core
            prepare_model(
                module,
                backend=how.backend,
                fallback=how.fallback,
                backend_options=how.backend_options,
                dtype=module.dtype,
            )
        return module


def _aside(ours: Callable[..., Any], known: torch.Tensor) -> Callable[..., Any]:
    """Return our loader for whatever parameter SGLang calls it with.

    The diffusion server makes a parameter with memory for each call, and keeps what the loader leaves in it: that
    memory is let go, and a number takes its place that is as large as SGLang wants it and takes no room.
    """

    @functools.wraps(ours)
    def load(param: torch.Tensor, loaded_weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if param is known or param.is_meta:
            return ours(param, loaded_weight, *args, **kwargs)
        result = ours(known, loaded_weight, *args, **kwargs)
        param.data = hollow(param)
        return result

    return load


__all__ = ["EnginePlace", "Hosted"]
