"""Write a report to a folder: each file is complete or absent, and nothing is replaced unasked."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from mxfp4_core.checkpoint.sinks import output_failed, write_file
from mxfp4_core.errors import OutputError
from mxfp4_core.report.html import render_html
from mxfp4_core.report.model import Report
from mxfp4_core.report.render import render_csv, render_json, render_markdown

RENDERERS: Mapping[str, Callable[[Report], str]] = MappingProxyType(
    {"html": render_html, "json": render_json, "csv": render_csv, "md": render_markdown}
)
"""By format, which is also the suffix of the file."""


def destinations(folder: Path, formats: Sequence[str], *, force: bool) -> dict[str, Path]:
    """Return the path of each format, checked before the work, so that it is not in vain; writes nothing.

    Raises:
        OutputError: a file that is there already and not ``force``, or a folder that cannot be written.
    """
    paths = {each: folder / f"report.{each}" for each in formats}
    there = [path.name for path in paths.values() if path.exists() or path.is_symlink()]
    if there and not force:
        raise OutputError(
            f"cannot write the report to {folder}",
            seen=f"already there: {', '.join(there)}",
            rule="nothing is replaced unasked",
            fix="choose another folder, or add --force",
        )
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        output_failed(folder, NotADirectoryError(errno.ENOTDIR, f"{nearest} is no folder"))
    if not os.access(nearest, os.W_OK):
        output_failed(folder, PermissionError(errno.EACCES, f"{nearest} cannot be written"))
    return paths


def write(report: Report, paths: Mapping[str, Path]) -> None:
    """Render everything, then write each file; where one cannot be written, what this call made is gone again.

    Raises:
        OutputError: the disk is full or a file cannot be written.
    """
    rendered = {path: RENDERERS[each](report).encode() for each, path in paths.items()}
    made: list[Path] = []
    try:
        for path, data in rendered.items():
            _make(path.parent, made)
            new = not os.path.lexists(path)
            write_file(path, data)
            if new:
                made.append(path)
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):  # the first failure is the one to tell
                path.rmdir() if path.is_dir() else path.unlink()
        raise


def _make(folder: Path, made: list[Path]) -> None:
    """Make a folder and those around it, and note each."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        try:
            each.mkdir(exist_ok=True)
        except OSError as error:
            output_failed(each, error)
        made.append(each)


__all__ = ["RENDERERS", "destinations", "write"]
