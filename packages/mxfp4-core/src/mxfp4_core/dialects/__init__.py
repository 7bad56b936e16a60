"""The public dialects of MXFP4 checkpoints: `names`, `get`, `detect`.

One file per dialect; adding one is writing that file and listing it in ``_DIALECTS``.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from mxfp4_core.dialects.base import Contents, Dialect, Entry
from mxfp4_core.dialects.compressed_tensors import COMPRESSED_TENSORS
from mxfp4_core.dialects.foreign import foreign_format
from mxfp4_core.dialects.native import NATIVE
from mxfp4_core.dialects.quark import QUARK
from mxfp4_core.errors import ConfigError, DialectError

if TYPE_CHECKING:
    from mxfp4_core.checkpoint.reader import Checkpoint

_DIALECTS: dict[str, Dialect] = {each.name: each for each in (NATIVE, COMPRESSED_TENSORS, QUARK)}


def names() -> tuple[str, ...]:
    """Return the dialects that can be read and written, the native one first."""
    return tuple(_DIALECTS)


def get(name: str) -> Dialect:
    """Return a dialect by name.

    Raises:
        ConfigError: no such dialect; the message lists them and the near misses.
    """
    if name in _DIALECTS:
        return _DIALECTS[name]
    near = difflib.get_close_matches(name, _DIALECTS, 1, 0.4)
    raise ConfigError(
        f"unknown dialect {name!r}",
        seen=repr(name),
        rule=f"a dialect is one of {', '.join(_DIALECTS)}",
        fix=f"did you mean {near[0]!r}?" if near else "pass one of these names",
    )


def identify(checkpoint: Checkpoint) -> tuple[str, str, Dialect | None] | None:
    """Say how a checkpoint is quantised, whether or not we can read it.

    Returns:
        The name of the format, the reason, and the dialect that reads it, if any; None for a checkpoint in
        high precision.
    """
    described = checkpoint.config.get("quantization_config")
    tensors = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
    if isinstance(described, dict):
        for dialect in _DIALECTS.values():
            if reason := dialect.recognise(described, tensors):
                return dialect.name, reason, dialect
    found = foreign_format(checkpoint.config, tensors, {path.as_posix() for path in checkpoint.other_files})
    return (*found, None) if found else None


def detect(checkpoint: Checkpoint) -> Dialect | None:
    """Return the dialect of a quantised checkpoint, or None for one in high precision.

    Raises:
        DialectError: the checkpoint is quantised in a way that we know or notice, but do not read.
    """
    found = identify(checkpoint)
    if found is None:
        return None
    name, reason, dialect = found
    if dialect is None:
        raise DialectError(
            f"cannot read the quantised weights of {checkpoint.path}",
            seen=f"{name} ({reason})",
            rule=f"dialects that are read: {', '.join(_DIALECTS)}",
            fix="use the checkpoint in high precision from which this one was made",
        )
    return dialect


def read(checkpoint: Checkpoint) -> tuple[Dialect, Contents] | None:
    """Detect the dialect and read its entries; None for a checkpoint in high precision.

    Raises:
        DialectError: an unreadable format, or a description that contradicts the tensors.
    """
    dialect = detect(checkpoint)
    if dialect is None:
        return None
    tensors = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
    return dialect, dialect.read(checkpoint.config["quantization_config"], tensors)


__all__ = ["Contents", "Dialect", "Entry", "detect", "get", "identify", "names", "read"]
