"""``mxfp4 warmup``: compile kernels now instead of at first use."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mxfp4_core.cli.output import progress_bar
from mxfp4_core.cli.settings import AsJson, Quiet

if TYPE_CHECKING:
    from mxfp4_core.backend.warmup import WarmUp


def warmup_command(
    backend: Annotated[str, typer.Option(help="Only the kernels of this backend.")] = "",
    jobs: Annotated[
        int | None, typer.Option(help="Kernels to compile at a time; the number of processors if left out.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compile nothing; say what is cached and what is missing.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compile the kernels of the installed backends ahead of time; needs no GPU. Exit code 1 if it fails."""
    from mxfp4_core.backend.warmup import warm_up

    shown = sys.stderr.isatty() and not (quiet or as_json or dry_run)
    done = []
    said = not (shown or quiet or as_json)
    with progress_bar("compiling", shown=shown, pieces=True) as progress:
        for one in warm_up(
            backend or None, jobs=jobs, dry_run=dry_run, progress=_say_total if said else progress
        ):
            done.append(one)
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "backends": [one.to_dict() for one in done]}, indent=2))
    else:
        for one in done:
            _print(one, dry_run)
    raise typer.Exit(1 if any(one.error for one in done) else 0)


def _say_total(done: int, total: int) -> None:
    """Say at the start how much there is to do, for logs, where no bar can move."""
    if done == 0:
        typer.echo(f"compiling {_kernels(total)}, which can take minutes", err=True)


def _kernels(count: int) -> str:
    return f"{count} kernel{'' if count == 1 else 's'}"


def _print(one: WarmUp, dry_run: bool) -> None:
    if one.error is not None:
        typer.echo(f"{one.backend}: {type(one.error).__name__}: {one.error}", err=True)
    elif not one.folder:
        typer.echo(f"{one.backend}: compiles nothing")
    else:
        for kernel in one.kernels:
            took = f"{kernel.seconds:6.2f} s" if kernel.state == "compiled" else ""
            typer.echo(f"  {kernel.state:<9}{took:>9}  {kernel.name}")
        rest = f"{one.count('missing')} missing" if dry_run else f"{one.count('compiled')} compiled now"
        typer.echo(
            f"{one.backend}: {_kernels(len(one.kernels))}, {rest}, {one.count('cached')} cached before; "
            f"{one.seconds:.1f} s\n{one.backend}: they are kept in {one.folder}"
        )


__all__ = ["warmup_command"]
