"""Who knows what a weight is: the model providers, entry points of the group ``mxfp4.models``.

A provider is asked with config.json and the headers of the checkpoint, and answers with a `ModelView`, or with None
for a model that is not its own. One that cannot be imported, or that raises, takes nobody else with it: where it was
not named, the others are asked, at last the names decide, and what went wrong is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mxfp4_core._plugins import Broken, Plugin, plugins
from mxfp4_core.config.messages import unknown_name
from mxfp4_core.errors import ModelError, Mxfp4Error, check_type
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.naming.view import ModelView

GROUP: Final = "mxfp4.models"

Headers = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor to its dtype, as safetensors spells it, and its shape."""


class ModelProvider(Protocol):
    """A library of models that says what the weights of its models are.

    Attributes:
        name: name of its entry point.
    """

    name: str

    def describe(self, config: Mapping[str, Any], headers: Headers) -> ModelView | None:
        """Describe a model, or return None if it is not one of this library.

        Reads no file and no network, runs no code that comes with a checkpoint, and makes no weight.

        Args:
            config: contents of config.json.
            headers: the tensors of the checkpoint.
        """
        ...


@dataclass(frozen=True)
class Described:
    """What is known about a model, and who says so.

    Attributes:
        view: what a provider said; None where the names decide.
        source: that in words, for plans and reports.
        unknown: providers were asked, and none has a class for this model.
        refused: a provider has a class, and says that it cannot be built, or that the tensors belong to another.
    """

    view: ModelView | None
    source: str
    unknown: bool = False
    refused: bool = False


def installed_providers() -> tuple[str, ...]:
    """Return the names of the installed providers, without importing them."""
    return tuple(plugins(GROUP))


def describe(config: Mapping[str, Any], headers: Headers, models: str = "auto") -> Described:
    """Ask the installed providers what the weights of a model are.

    Args:
        config: contents of config.json; empty where there is none.
        headers: the tensors of the checkpoint.
        models: ``auto`` asks every installed provider, ``none`` nobody, a name that one alone.

    Raises:
        ConfigError: no provider has that name.
        ModelError: the named provider is broken, or does not know the model; or two providers claim it.
    """
    check_type(models, str, "models")
    if models == "none":
        return Described(None, "kinds by names: models = 'none'")
    known = plugins(GROUP)
    if models != "auto":
        if (view := _ask(_named(models), config, headers)) is None:
            raise ModelError(
                f"the provider {models!r} does not know this model",
                seen=f"model type {_model_type(config)}",
                rule="a provider that is named describes the model",
                fix="use models = 'auto' or 'none'",
            )
        return Described(view, _says(view))
    if not config:
        return Described(None, "kinds by names: there is no config.json", unknown=True)
    views: dict[str, ModelView] = {}
    trouble: list[str] = []
    refused = False
    for name, plugin in known.items():
        try:
            view = _ask(plugin, config, headers)
        except ModelError as error:
            refused |= isinstance(error.__cause__, ModelError)
            trouble.append(f"; provider {name!r} cannot say: {' '.join(error.seen.split())}")
            continue
        if view is not None:
            views[name] = view
    if len(views) > 1:
        raise ModelError(
            f"{len(views)} providers claim the model type {_model_type(config)}",
            seen=", ".join(f"{name} ({known[name].distribution})" for name in views),
            rule="one provider says what the weights of a model are",
            fix=f"name one: --models {next(iter(views))} or models={next(iter(views))!r}",
        )
    noted = "".join(trouble)
    for view in views.values():
        return Described(view, _says(view) + noted)
    if not known:
        return Described(
            None, f"kinds by names: no provider for model type {_model_type(config)} is installed"
        )
    asked = "" if noted else f": no class for model type {_model_type(config)} in {', '.join(known)}"
    return Described(None, f"kinds by names{asked}{noted}", unknown=bool(asked), refused=refused)


def check_belongs(view: ModelView, headers: Headers, *, moved: bool = False) -> None:
    """Refuse tensors of another model than the one that config.json describes; for a provider, before it answers.

    Args:
        view: of that model.
        headers: the tensors of the checkpoint.
        moved: the library moves axes while it loads. Then sizes are compared in any order, for tensors with as many
            axes as their parameter.

    Raises:
        ModelError: a tensor that becomes a parameter alone has another shape than that, or most tensors have no place
            in the model.
    """
    pieces = Counter(name for stored in view.tensors.values() for name in stored.parameters)
    for stored in view.tensors.values():
        parameter, shape = view.parameters[stored.parameters[0]], headers[stored.name][1]
        if len(stored.parameters) > 1 or pieces[parameter.name] > 1:
            continue
        want = list(parameter.shape)
        if stored.k_first:
            want[-2:] = want[:-3:-1]
        same = sorted(shape) == sorted(want) or len(shape) != len(want) if moved else list(shape) == want
        if not same:
            seen, rule = f"{stored.name} is {list(shape)}", f"{parameter.name} is {list(parameter.shape)}"
            raise _another_model(view, seen, f"{rule} by config.json")
    lost = [name for name in headers if name not in view.tensors]
    if 2 * len(lost) > len(headers):
        seen = f"{len(lost)} of {len(headers)} tensors have no place in it, {lost[0]} first"
        raise _another_model(view, seen, "most tensors of a checkpoint are loaded")


def _another_model(view: ModelView, seen: str, rule: str) -> ModelError:
    return ModelError(
        f"the checkpoint is not one of {view.model}",
        seen=seen,
        rule=rule,
        fix="use the config.json that belongs to the checkpoint",
    )


def load_provider(name: str) -> ModelProvider:
    """Return an installed provider by name.

    Raises:
        ConfigError: no provider has that name.
        ModelError: its package is broken, or its entry point is no provider.
    """
    return _loaded(_named(name))


def _named(name: str) -> Plugin:
    known = plugins(GROUP)
    if name not in known:
        raise unknown_name("models", name, ["auto", "none", *known])
    return known[name]


def _loaded(plugin: Plugin) -> ModelProvider:
    loaded: Any = plugin.object()
    if isinstance(loaded, Broken):
        raise _broken(plugin, loaded.reason, loaded.fix)
    if isinstance(loaded, type) or not callable(getattr(loaded, "describe", None)):
        raise _broken(plugin, f"{loaded!r} has no describe(config, headers)", plugin.advice)
    if (name := getattr(loaded, "name", None)) != plugin.name:
        raise _broken(plugin, f"its name is {name!r}, the entry point's {plugin.name!r}", plugin.advice)
    found: ModelProvider = loaded
    return found


def _ask(plugin: Plugin, config: Mapping[str, Any], headers: Headers) -> ModelView | None:
    provider = _loaded(plugin)
    try:
        view: Any = provider.describe(config, headers)
    except Mxfp4Error as error:
        raise _broken(plugin, f"{error.what}: {error.seen}; {error.rule}", error.fix) from error
    except Exception as error:  # isolation: any failure belongs to this provider alone
        raise _broken(plugin, f"describe() raised {type(error).__name__}: {error}", plugin.advice) from error
    if view is not None and not isinstance(view, ModelView):
        seen = f"describe() returned {type(view).__name__}, not a ModelView or None"
        raise _broken(plugin, seen, plugin.advice)
    return view


def _broken(plugin: Plugin, seen: str, fix: str) -> ModelError:
    return ModelError(
        f"the model provider {plugin.name!r} cannot be used",
        seen=seen if plugin.distribution in seen else f"{seen} ({plugin.distribution})",
        rule="a provider describes a model or returns None",
        fix=f"{fix}, or go by names: --models none",
    )


def _says(view: ModelView) -> str:
    return f"kinds by {view.provider}: {view.model}"


def _model_type(config: Mapping[str, Any]) -> str:
    return ModelFacts.read(config).model_type or "(none given)"


__all__ = [
    "GROUP",
    "Described",
    "Headers",
    "ModelProvider",
    "check_belongs",
    "describe",
    "installed_providers",
    "load_provider",
]
