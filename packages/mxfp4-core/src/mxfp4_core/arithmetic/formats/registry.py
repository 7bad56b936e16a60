"""Formats by name: the entry points of the group ``mxfp4.formats``."""

from __future__ import annotations

from collections.abc import Mapping

from mxfp4_core._plugins import Broken, Plugin, plugins
from mxfp4_core.arithmetic.formats.base import GROUP, Format
from mxfp4_core.errors import FormatError

_FOUND: dict[str, tuple[Mapping[str, Plugin], Format]] = {}
"""What was found, with the list of plug-ins that it was found in: a new list is looked through again."""


def formats() -> tuple[str, ...]:
    """Return the names of all installed formats."""
    return tuple(plugins(GROUP))


def get(name: str) -> Format:
    """Return a format by name.

    Raises:
        FormatError: no such format, or the package that provides it is broken.
    """
    listed = plugins(GROUP)
    made_from, found = _FOUND.get(name, (None, None))
    if found is not None and made_from is listed:  # operators ask in every call
        return found
    found = _load(name, listed)
    _FOUND[name] = (listed, found)
    return found


def _load(name: str, listed: Mapping[str, Plugin]) -> Format:
    plugin = listed.get(name)
    if plugin is None:
        raise FormatError(
            f"format {name!r} is not known",
            seen=repr(name),
            rule=f"a format is one of {', '.join(formats())}",
            fix="use one of these, or install the package that provides it",
        )
    found = plugin.object()
    if isinstance(found, Broken):
        raise FormatError(
            f"format {name!r} cannot be used", seen=found.reason, rule="its package works", fix=found.fix
        )
    if not isinstance(found, Format) or found.name != name:
        raise FormatError(
            f"format {name!r} cannot be used",
            seen=f"{plugin.points[0].value} is {found!r} ({plugin.distribution})",
            rule="the entry point is a Format of that name",
            fix=plugin.advice,
        )
    return found


get_format = get
"""The name under which the room exports it."""

__all__ = ["formats", "get", "get_format"]
