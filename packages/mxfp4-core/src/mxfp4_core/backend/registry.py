"""The installed backends: the entry points of the group ``mxfp4.backends``, listed without imports.

Each one is imported on demand and by itself. What goes wrong there becomes a ``No`` that names the exception,
its message and the distribution; it never reaches the other backends.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast, get_args

from mxfp4_core import _plugins
from mxfp4_core.backend.answers import No, Numerics
from mxfp4_core.backend.problem import Op
from mxfp4_core.backend.protocol import Backend

GROUP = _plugins.BACKENDS


class Plugin(_plugins.Plugin):
    """One name in the group, with every distribution that claims it."""

    def load(self) -> Backend | No:
        """Import the plug-in and check that it has the members of a backend."""
        loaded = self.object()
        if isinstance(loaded, _plugins.Broken):
            return No(loaded.reason, loaded.fix)
        if problems := _defects(self.name, loaded):
            value = self.points[0].value
            return No(f"{value} is no backend: {problems} ({self.distribution})", self.advice)
        return cast(Backend, loaded)


def installed() -> Mapping[str, Plugin]:
    """List the plug-ins by name, without importing them. The list is read once; see ``refresh``."""
    return _installed()


def refresh() -> None:
    """Forget what was listed and loaded, for example after a package was installed meanwhile."""
    _plugins.refresh()
    _installed.cache_clear()


@functools.cache
def _installed() -> Mapping[str, Plugin]:
    found = _plugins.plugins(GROUP)
    return MappingProxyType({name: Plugin(name, one.points) for name, one in found.items()})


def _defects(name: str, loaded: object) -> str:
    if isinstance(loaded, type):
        return f"it is a class, not an object: {loaded!r}"
    types: dict[str, type] = {"name": str, "description": str, "numerics": Numerics}
    types |= {"features": frozenset, "automatic_on": frozenset}
    wrong = [
        f"{key} is {type(getattr(loaded, key, None)).__name__}, not {kind.__name__}"
        for key, kind in types.items()
        if not isinstance(getattr(loaded, key, None), kind)
    ]
    if not wrong and getattr(loaded, "name", None) != name:
        wrong.append(f"its name is {getattr(loaded, 'name', None)!r}, the entry point's {name!r}")
    features: object = getattr(loaded, "features", None)
    ops = [op for op in get_args(Op) if isinstance(features, frozenset) and op in features]
    members = ("supports", "layout", *ops)
    wrong += [f"{key} is missing" for key in members if not callable(getattr(loaded, key, None))]
    return "; ".join(wrong)
