"""The view of a model that is in memory: what each parameter is, by the module that holds it, never by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from torch import nn

from mxfp4_core.errors import ConfigError
from mxfp4_core.modules.experts import find_gate, top_k_of
from mxfp4_core.modules.readers import weight_readers
from mxfp4_core.modules.sites import find_sites
from mxfp4_core.naming.families import rewritten
from mxfp4_core.naming.view import Kind, ModelView, Parameter

_ROUTER: Final = re.compile(r"Router|TopK|Mo[eE]Gate")


def view_of(model: nn.Module) -> ModelView:
    """Return what the modules of a model tell; a library that owns the model tells more.

    Parameters that are one object are tied, and a ``config`` is read if the model has one.

    Args:
        model: in memory or on the meta device.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    ties = {name: group[name == group[0]] for group in names.values() if len(group) > 1 for name in group}
    config = getattr(model, "config", None)
    to_dict = getattr(config, "to_dict", None)
    read = to_dict() if callable(to_dict) else config if isinstance(config, Mapping) else {}
    parameters = describe_parameters(model, ties=ties)
    return ModelView("its modules", type(model).__name__, parameters, config=dict(read))


def describe_parameters(
    model: nn.Module,
    *,
    heads: Collection[nn.Module] = (),
    ties: Mapping[str, str] | None = None,
    keep: Callable[[str], str] = lambda path: "",
    readers: bool = False,
    default: Callable[[str], str] = lambda path: "",
) -> dict[str, Parameter]:
    """Return what each parameter of a model is, by its name in the model.

    Args:
        model: in memory or on the meta device, before anything in it was replaced.
        heads: the modules that give the output.
        ties: name of a parameter to that of another one which has the same memory.
        keep: says by the name of a module why it must stay in high precision, empty where it need not.
        readers: say which code of the model reads a weight itself; its source is looked at.
        default: as `keep`, why it stays there unless the config says otherwise.
    """
    found = _Describer(model, {id(head) for head in heads}, ties or {}, keep, default)
    found.readers = weight_readers(model) if readers else {}
    return {
        each.name: each for path, module in model.named_modules() for each in found.parameters(path, module)
    }


class _Describer:
    """Describes the parameters of one model, module by module."""

    def __init__(
        self,
        model: nn.Module,
        heads: Collection[int],
        ties: Mapping[str, str],
        keep: Callable[[str], str],
        default: Callable[[str], str],
    ) -> None:
        self._model, self._heads, self._ties = model, heads, ties
        self._keep, self._default = keep, default
        self.readers: Mapping[str, str] = {}
        self._type = str(getattr(getattr(model, "config", None), "model_type", ""))
        self._sites = {site.path: site for site in find_sites(model)}
        # The blocks around experts, each with the number of them: what gives one number for each is their router.
        self._blocks = {
            path.rpartition(".")[0]: next(iter(site.weights.values()))[0]
            for path, site in self._sites.items()
            if site.is_experts
        }
        for path, module in model.named_modules():
            parent, _, last = path.rpartition(".")
            if last == "experts" and isinstance(module, nn.ModuleList):
                self._blocks[parent] = len(module)

    def parameters(self, path: str, module: nn.Module) -> Iterator[Parameter]:
        """Yield the parameters that a module holds itself."""
        site, keep = self._sites.get(path), self._keep(path)
        if rewritten(self._type, path):
            keep = keep or "the model changes it while it runs"
        prefix = f"{path}." if path else ""
        for name, parameter in module.named_parameters(recurse=False):
            kind = self._kind(path, module, name, parameter.ndim)
            shape, k_first = tuple(parameter.shape), False
            refusal, held, reader, gate, top_k = "", "", "", None, 0
            if site is not None and name in site.weights:
                shape, k_first = site.weights[name], site.transposed
                refusal, held = site.refusal, site.held
                reader = self.readers.get(path, "") if name == "weight" else ""
                if kind == "experts" and not (refusal or held):
                    gate, top_k = find_gate(module), _top_k(self._model, site.path)
            elif kind in ("head", "router"):
                refusal = f"{type(module).__name__} is more than a product with its weight"
            yield Parameter(
                f"{prefix}{name}",
                kind,
                shape,
                type(module).__name__,
                k_first,
                self._ties.get(f"{prefix}{name}", ""),
                keep if len(shape) > 1 else "",
                refusal,
                gate,
                top_k,
                held,
                reader,
                self._default(path) if len(shape) > 1 else "",
            )

    def _kind(self, path: str, module: nn.Module, name: str, axes: int) -> Kind:
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            return "embedding"
        if isinstance(module, nn.modules.conv._ConvNd):
            return "convolution"
        if axes < 2:
            return "norm" if "norm" in type(module).__name__.lower() else "other"
        if id(module) in self._heads:
            return "head"
        if axes == 2 and self._routes(path, module):
            return "router"
        site = self._sites.get(path)
        if site is not None and name in site.weights:
            return "experts" if site.is_experts else "linear"
        return "other"

    def _routes(self, path: str, module: nn.Module) -> bool:
        if _ROUTER.search(type(module).__name__):
            return True
        experts, weight = self._blocks.get(path.rpartition(".")[0], 0), getattr(module, "weight", None)
        return experts > 1 and isinstance(weight, nn.Parameter) and weight.shape[0] == experts


def _top_k(model: nn.Module, path: str) -> int:
    try:
        return top_k_of(model, path)
    except ConfigError:  # who replaces the module needs it and says so; a plan does without
        return 0


__all__ = ["describe_parameters", "view_of"]
