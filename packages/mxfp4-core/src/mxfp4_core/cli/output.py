"""What the writing verbs have in common: sizes, the progress bar, the last lines."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from mxfp4_core._text import disk_text, printable
from mxfp4_core.errors import ConfigError

if TYPE_CHECKING:
    from mxfp4_core.jobs.output import Result

_SHOWN = 8  # of names in a line
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def shard_bytes(text: str, option: str = "--max-shard-size") -> int:
    """Read a size such as ``5GB``, ``800MB``, ``4GiB`` or a number of bytes.

    Args:
        text: as it was given.
        option: which option, for the message.

    Raises:
        ConfigError: no such size, or 0.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*([KMG]?I?B?)", text.strip().upper())
    unit = match[2] if match and match[2] in _UNITS else f"{match[2]}B" if match else "?"
    nbytes = int(float(match[1]) * _UNITS[unit]) if match and unit in _UNITS else 0
    if nbytes < 1:
        raise ConfigError(
            f"{option} cannot be read",
            seen=repr(text),
            rule="a size is bytes above 0, alone or in KB, MB, GB, KiB, MiB or GiB",
            fix="write 5GB or 800MB",
        )
    return nbytes


@contextmanager
def progress_bar(verb: str, *, shown: bool, pieces: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show bytes, rate and time left on stderr, or pieces and time; yield what reports the progress."""
    if not shown:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    if pieces:
        columns = (MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(TextColumn(verb), BarColumn(), *columns, console=Console(stderr=True))
    task = bar.add_task(verb, total=None)

    def report(done: int, total: int) -> None:
        bar.start()  # only now, so that an error before any work is not printed below an empty bar
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()


def say(line: str) -> None:
    """Print one line; what a terminal would obey in names that come from files is escaped."""
    typer.echo(printable(line))


def beside_lines(copied: Sequence[str], left: Mapping[str, str]) -> list[str]:
    """Say which weight files are taken over as they are, and which files are left behind, one line for each reason."""
    lines = [f"copied as they are: {_listed(copied)}"] if copied else []
    reasons = dict.fromkeys(left.values())
    names = {reason: [name for name in left if left[name] == reason] for reason in reasons}
    return lines + [f"left behind ({reason}): {_listed(found)}" for reason, found in names.items()]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more; --json lists all" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more


def error_lines(errors: Mapping[str, float]) -> list[str]:
    """Say how much was lost: the worst weights, and how many there are."""
    if not errors:
        return []
    worst = sorted(errors.items(), key=lambda pair: pair[1])[:_SHOWN]
    exact = sum(value == math.inf for value in errors.values())
    told = ", ".join(f"{printable(name)} {value:.1f} dB" for name, value in worst if value != math.inf)
    lost = f"; the worst: {told}" if told else ""
    return [f"signal to noise of {len(errors)} weights, {exact} of them exact{lost}; --json lists all"]


def json_text(data: object, depth: int = 1) -> str:
    """Return JSON with a line for each key, and one for each element of a list.

    `json.dumps` with an indent works without its C code, and takes minutes for the tensors of a large model.

    Args:
        data: what `json.dumps` takes, with strings as keys.
        depth: levels of indentation of what it consists of.
    """
    pad = "  " * depth
    if isinstance(data, dict) and data:
        lines = [f"{pad}{json.dumps(key)}: {json_text(value, depth + 1)}" for key, value in data.items()]
        return "\n".join(("{", ",\n".join(lines), f"{pad[2:]}}}"))
    if isinstance(data, list | tuple) and any(isinstance(each, dict) for each in data):
        return "\n".join(("[", ",\n".join(f"{pad}{json.dumps(each)}" for each in data), f"{pad[2:]}]"))
    return json.dumps(data)


def print_result(result: Result, *, as_json: bool) -> None:
    """Print what was done; the last line says where the result is and how to load it."""
    if as_json:
        typer.echo(json_text(result.to_dict()))
        return
    before, after = result.source_bytes, result.target_bytes
    ratio = after / before if before else 1.0
    rule = f", profile {result.profile}" if result.profile else ""
    say(f"{result.quantized} weights in {result.format.upper()}, {result.kept} tensors unchanged{rule}")
    say(
        f"{disk_text(before)} -> {disk_text(after)} ({ratio:.1%}) in {len(result.files)} file(s), {result.dialect}"
    )
    for line in beside_lines(result.copied, result.left):
        say(line)
    reason = f"dialect {result.dialect}: {result.why}" if result.why else ""
    for line in (reason, result.kinds, *(f"note: {note}" for note in result.notes)):
        if line:
            say(line)
    for line in error_lines(result.errors):
        say(line)
    if result.dry_run:
        say(f"dry run: nothing was written to {result.path}")
        return
    resumed = f", {result.resumed} file(s) were there from an earlier run" if result.resumed else ""
    say(f"{result.seconds:.1f} s{resumed}")
    how = (
        f"load it with: {result.load}"
        if result.load
        else "no class of the model's library loads it as it is: see above"
    )
    say(f"wrote {result.path} - {how}")


__all__ = ["beside_lines", "json_text", "print_result", "progress_bar", "say", "shard_bytes"]
