"""Open the checkpoint of a job: one that is quantised, or one that is not, and say so where it is the other kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mxfp4_core import dialects
from mxfp4_core.checkpoint.reader import Checkpoint, open_checkpoint
from mxfp4_core.dialects.agreement import check_model
from mxfp4_core.dialects.base import Contents, Dialect
from mxfp4_core.dialects.narrow import narrow_kind, read_narrow
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError


def open_high_precision(path: str | Path) -> Checkpoint:
    """Open a checkpoint whose weights are yet to be quantised.

    Raises:
        CheckpointError: a damaged, incomplete or hostile file.
        DialectError: it is quantised, by whatever method, or contradicts itself.
    """
    checkpoint = open_checkpoint(path)
    if found := dialects.identify(checkpoint):
        name, reason, dialect = found
        if dialect is not None and _settings(checkpoint, dialect) is not None:
            dialects.read(checkpoint)  # a folder that contradicts itself is not one to convert
        raise DialectError(
            f"{checkpoint.path} is quantised already",
            seen=f"format {name} ({reason})",
            rule="weights are quantised once, from high precision",
            fix="`mxfp4 convert` changes its dialect" if dialect else "use the checkpoint it was made from",
        )
    return checkpoint


def open_to_compare(path: str | Path, what: str) -> Checkpoint:
    """Open a checkpoint in high precision with which a quantised one is compared.

    Args:
        path: of it.
        what: it is to be, for the message.

    Raises:
        CheckpointError: nothing to read, or damaged files.
        DialectError: it is quantised itself.
    """
    checkpoint = open_checkpoint(path)
    if found := dialects.identify(checkpoint):
        raise DialectError(
            f"{checkpoint.path} cannot be {what}",
            seen=f"it is quantised already: {found[0]} ({found[1]})",
            rule="a quantised checkpoint is compared with one in high precision",
            fix="give the checkpoint that the other one was made from",
        )
    return checkpoint


def open_quantized(path: str | Path, verb: str) -> tuple[Checkpoint, Dialect, Contents]:
    """Open a checkpoint with MXFP4 weights, and read what it consists of.

    Args:
        path: folder or file.
        verb: what is to be done with it, for the message.

    Raises:
        CheckpointError: a damaged, incomplete or hostile file.
        DialectError: high precision, a dialect that is not read, or a description that contradicts the tensors.
        ConfigError: settings in the file that are not valid.
    """
    checkpoint = open_checkpoint(path)
    found = dialects.read(checkpoint)
    if found is None:
        raise DialectError(
            f"cannot {verb} {checkpoint.path}",
            seen="no quantised weights and no quantization_config",
            rule=f"{verb} reads MXFP4 checkpoints",
            fix="`mxfp4 quantize` makes one from high precision",
        )
    dialect, contents = found
    if (settings := _settings(checkpoint, dialect)) is not None:
        rest = {name: (recipe.dtype, recipe.shape) for name, recipe in contents.tensors.items()}
        check_model(dialect.name, settings, checkpoint.config, contents.entries, rest)
    return checkpoint, dialect, contents


def open_any(path: str | Path, verb: str) -> tuple[Checkpoint, Dialect | None, Contents]:
    """Open a checkpoint with weights in MXFP4, FP8 or NVFP4, and read what it consists of.

    Args:
        path: folder or file.
        verb: what is to be done with it, for the message.

    Returns:
        The checkpoint, its dialect (None for FP8 and NVFP4, which have none here), and what it holds.

    Raises:
        CheckpointError, DialectError, ConfigError: as `open_quantized`.
    """
    checkpoint = open_checkpoint(path)
    found = dialects.identify(checkpoint)
    source = Source.of(checkpoint)
    if found is not None and found[2] is None and (kind := narrow_kind(source)):
        return checkpoint, None, read_narrow(source, kind)
    return open_quantized(path, verb)


def _settings(checkpoint: Checkpoint, dialect: Dialect) -> dict[str, Any] | None:
    """Return what the file says about how it was made, where the dialect stores all of it."""
    return dialect.settings(checkpoint.config.get("quantization_config") or {})


__all__ = ["open_any", "open_high_precision", "open_quantized", "open_to_compare"]
