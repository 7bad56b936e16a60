"""The installed backends: the entry points of the group ``mxfp4.backends``, listed without imports.

Each one is imported on demand and by itself. What goes wrong there becomes a ``No`` that names the exception,
its message and the distribution; it never reaches the other backends.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import cast, get_args

from mxfp4_core.backend.answers import No, Numerics
from mxfp4_core.backend.problem import Op
from mxfp4_core.backend.protocol import Backend

GROUP = "mxfp4.backends"


@dataclass(frozen=True)
class Plugin:
    """One name in the group, with every distribution that claims it.

    Attributes:
        name: name of the backend.
        points: its entry points; more than one is an error when it is loaded.
    """

    name: str
    points: tuple[EntryPoint, ...]

    @property
    def distribution(self) -> str:
        """Name and version of the providing distributions, for example ``mxfp4-core 0.1.0``."""
        return " and ".join(_distribution(point) for point in self.points)

    @property
    def advice(self) -> str:
        """What a user can do about a broken one."""
        names = " ".join(point.dist.name if point.dist else point.value for point in self.points)
        return f"update or uninstall it: pip uninstall {names}"

    def load(self) -> Backend | No:
        """Import the plug-in and check that it has the members of a backend."""
        return _load(self)


def installed() -> Mapping[str, Plugin]:
    """List the plug-ins by name, without importing them. The list is read once; see ``refresh``."""
    return _installed()


def refresh() -> None:
    """Forget what was listed and loaded, for example after a package was installed meanwhile."""
    _installed.cache_clear()
    _load.cache_clear()


@functools.cache
def _installed() -> Mapping[str, Plugin]:
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        same = found.setdefault(point.name, [])
        # One distribution may be on the path twice, for example in a wheel and as an editable install.
        if all((_distribution(point), point.value) != (_distribution(other), other.value) for other in same):
            same.append(point)
    return MappingProxyType({name: Plugin(name, tuple(points)) for name, points in sorted(found.items())})


@functools.cache
def _load(plugin: Plugin) -> Backend | No:
    point, *others = plugin.points
    if others:
        reason = f"more than one distribution registers the name {plugin.name!r}: {plugin.distribution}"
        return No(reason, "uninstall all but one of them")
    try:
        loaded = point.load()
        problems = _defects(plugin.name, loaded)
    except (Exception, SystemExit) as error:  # isolation: any failure belongs to this plug-in alone
        raised = f"importing {point.value} raised {type(error).__name__}: {error}"
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        fix = f"install {missing!r}, which it needs, or {plugin.advice}" if missing else plugin.advice
        return No(f"{raised} ({plugin.distribution})", fix)
    if problems:
        return No(f"{point.value} is no backend: {problems} ({plugin.distribution})", plugin.advice)
    return cast(Backend, loaded)


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


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
