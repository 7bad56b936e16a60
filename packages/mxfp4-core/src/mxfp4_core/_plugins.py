"""Entry points by group and name: listed without an import, loaded one by one, each failure kept to itself."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Final

# Groups whose names a config may use without importing any of them.
BACKENDS: Final = "mxfp4.backends"
DIALECTS: Final = "mxfp4.dialects"
PROFILES: Final = "mxfp4.profiles"


@dataclass(frozen=True)
class Broken:
    """Why a plug-in cannot be used.

    Attributes:
        reason: what was seen.
        fix: one thing that the reader can do.
    """

    reason: str
    fix: str


@dataclass(frozen=True)
class Plugin:
    """One name in a group, with every distribution that claims it.

    Attributes:
        name: name of the plug-in.
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

    def object(self) -> object:
        """Import the plug-in once, and return it or a `Broken` that names what its import raised."""
        return _object(self)


def plugins(group: str) -> Mapping[str, Plugin]:
    """List the plug-ins of an entry-point group by name, without importing them. It is read once; see `refresh`."""
    return _plugins(group)


def refresh() -> None:
    """Forget what was listed and loaded, for example after a package was installed meanwhile."""
    _plugins.cache_clear()
    _object.cache_clear()


@functools.cache
def _plugins(group: str) -> Mapping[str, Plugin]:
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        same = found.setdefault(point.name, [])
        # One distribution may be on the path twice, for example in a wheel and as an editable install.
        if all((_distribution(point), point.value) != (_distribution(other), other.value) for other in same):
            same.append(point)
    return MappingProxyType({name: Plugin(name, tuple(points)) for name, points in sorted(found.items())})


@functools.cache
def _object(plugin: Plugin) -> object:
    point, *others = plugin.points
    if others:
        reason = f"more than one distribution registers the name {plugin.name!r}: {plugin.distribution}"
        return Broken(reason, "uninstall all but one of them")
    try:
        return point.load()
    except (Exception, SystemExit) as error:  # isolation: any failure belongs to this plug-in alone
        raised = f"importing {point.value} raised {type(error).__name__}: {error}"
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        fix = f"install {missing!r}, which it needs, or {plugin.advice}" if missing else plugin.advice
        return Broken(f"{raised} ({plugin.distribution})", fix)


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


__all__ = ["BACKENDS", "DIALECTS", "PROFILES", "Broken", "Plugin", "plugins", "refresh"]
