"""The installed dialects: entry points of the group ``mxfp4.dialects``. Their list is the registry, nothing else is.

A checkpoint is shown to all of them. One whose import fails does not stop the others, and is named beside the refusal
of a checkpoint that nobody reads. One that raises over a checkpoint does not stop the others either: it is warned of,
and it is the error where config.json names it, or where the checkpoint is quantised and nobody else recognises it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TypeVar

from mxfp4_core._plugins import DIALECTS, Broken, Plugin, plugins
from mxfp4_core._text import did_you_mean
from mxfp4_core.checkpoint.gguf import SUFFIX
from mxfp4_core.config.known import dialect_names
from mxfp4_core.dialects.base import Contents, Dialect
from mxfp4_core.dialects.pairs import check_parts
from mxfp4_core.dialects.source import Source
from mxfp4_core.dialects.unread import unread_format
from mxfp4_core.errors import ConfigError, DialectError, Mxfp4Error

if TYPE_CHECKING:
    from mxfp4_core.checkpoint.reader import Checkpoint

_LOG = logging.getLogger("mxfp4_core.dialects")
_T = TypeVar("_T")


def names() -> tuple[str, ...]:
    """Return the names of all installed dialects, the native one first. Nothing is imported."""
    return dialect_names()


def get(name: str) -> Dialect:
    """Return a dialect by name.

    Raises:
        ConfigError: no such dialect, with the near misses, or the package that provides it is broken.
    """
    plugin = plugins(DIALECTS).get(name)
    if plugin is None:
        raise ConfigError(
            f"unknown dialect {name!r}",
            seen=repr(name),
            rule=f"a dialect is one of {', '.join(names())}",
            fix=did_you_mean(name, names(), "pass one of these names", cutoff=0.4),
        )
    found = _load(plugin)
    if isinstance(found, Broken):
        raise ConfigError(
            f"dialect {name!r} cannot be used", seen=found.reason, rule="its package works", fix=found.fix
        )
    return found


def identify(checkpoint: Checkpoint) -> tuple[str, str, Dialect | None] | None:
    """Say how a checkpoint is quantised, whether or not we can read it.

    Returns:
        The name of the format, the reason, and the dialect that reads it, if any; None for a checkpoint in
        high precision.

    Raises:
        DialectError: the dialect that config.json names raises, or one does where the checkpoint is quantised and
            nobody else recognises it; or more than one takes the checkpoint for its own.
    """
    source = Source.of(checkpoint)
    claims: list[tuple[Dialect, str]] = []
    failed: dict[str, Mxfp4Error] = {}
    for plugin in plugins(DIALECTS).values():
        dialect = _load(plugin)
        if isinstance(dialect, Broken):
            continue
        try:
            if reason := _recognised(plugin, checkpoint, partial(dialect.recognise, source)):
                claims.append((dialect, reason))
        except Mxfp4Error as error:
            failed[plugin.name] = error
    unread = None if claims else unread_format(source.config, source.tensors, source.files)
    if not claims and (others := [path.name for path in source.weights if path.suffix == SUFFIX]):
        unread = "GGUF without MXFP4", f"file {others[0]}"
    for name, fault in failed.items():
        if unread or name == source.described.get("quant_method"):
            raise fault
        _LOG.warning("%s, and is not asked about it: %s; %s", fault.what, fault.seen, fault.fix)
    if len(claims) > 1:
        raise DialectError(
            f"it is not clear how {checkpoint.path} is stored",
            seen="; ".join(f"{dialect.name}: {reason}" for dialect, reason in claims),
            rule="one dialect recognises a checkpoint",
            fix="uninstall the package that takes it wrongly, or correct config.json",
        )
    if claims:
        dialect, reason = claims[0]
        return dialect.name, reason, dialect
    return (*unread, None) if unread else None


def detect(checkpoint: Checkpoint) -> Dialect | None:
    """Return the dialect of a quantised checkpoint, or None for one in high precision.

    Raises:
        DialectError: the checkpoint is quantised in a way that we know or notice, but do not read; or as `identify`.
    """
    found = identify(checkpoint)
    if found is None:
        return None
    name, reason, dialect = found
    if dialect is None:
        loaded = {key: _load(plugin) for key, plugin in plugins(DIALECTS).items()}
        broken = {key: one for key, one in loaded.items() if isinstance(one, Broken)}
        dead = [f"{key} cannot be used: {one.reason}" for key, one in broken.items()]
        fixes = [f"if it is of {key}: {one.fix}" for key, one in broken.items()]
        raise DialectError(
            f"cannot read the quantised weights of {checkpoint.path}",
            seen="; ".join([f"{name} ({reason})", *dead]),
            rule=f"dialects that are read: {', '.join(key for key in names() if key not in broken)}",
            fix="; ".join([*fixes, "use the checkpoint in high precision from which this one was made"]),
        )
    return dialect


def read(checkpoint: Checkpoint) -> tuple[Dialect, Contents] | None:
    """Detect the dialect and read what the checkpoint holds; None for one in high precision. No data is read.

    Raises:
        DialectError: an unreadable format, a description that contradicts the tensors, or a dialect whose entries do
            not fit their format.
    """
    dialect = detect(checkpoint)
    if dialect is None:
        return None
    plugin = plugins(DIALECTS)[dialect.name]
    contents = _guarded(plugin, checkpoint, partial(dialect.read, Source.of(checkpoint)))
    if not isinstance(contents, Contents):
        _fault(plugin, checkpoint, f"read returned {type(contents).__name__}", "it returns Contents")
    for name, entry in contents.entries.items():
        if name != entry.weight:
            seen = f"entry {entry.weight!r} under the name {name!r}"
            _fault(plugin, checkpoint, seen, "entries stand under their canonical names")
        check_parts(dialect.name, entry)
    return dialect, contents


def _recognised(plugin: Plugin, checkpoint: Checkpoint, ask: Callable[[], object]) -> str | None:
    reason = _guarded(plugin, checkpoint, ask)
    if reason is not None and not isinstance(reason, str):
        _fault(plugin, checkpoint, f"recognise returned {reason!r}", "it returns a reason or None")
    return reason


def _load(plugin: Plugin) -> Dialect | Broken:
    found = plugin.object()
    if isinstance(found, Broken):
        return found
    if not isinstance(found, Dialect) or getattr(found, "name", None) != plugin.name:
        reason = f"{plugin.points[0].value} is {found!r}, not a Dialect of that name ({plugin.distribution})"
        return Broken(reason, plugin.advice)
    return found


def _guarded(plugin: Plugin, checkpoint: Checkpoint, ask: Callable[[], _T]) -> _T:
    try:
        return ask()
    except Mxfp4Error:
        raise
    except Exception as error:  # isolation: a dialect of another package may raise anything
        seen = f"{type(error).__name__}: {error}"
        _fault(plugin, checkpoint, seen, "a dialect answers or raises an error of mxfp4", error)


def _fault(
    plugin: Plugin, checkpoint: Checkpoint, seen: str, rule: str, cause: Exception | None = None
) -> NoReturn:
    raise DialectError(
        f"dialect {plugin.name!r} failed on {checkpoint.path}",
        seen=f"{seen} ({plugin.distribution})",
        rule=rule,
        fix=plugin.advice,
    ) from cause


__all__ = ["detect", "get", "identify", "names", "read"]
