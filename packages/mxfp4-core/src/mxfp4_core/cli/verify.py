"""``mxfp4 verify``: check a written checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mxfp4_core.cli.output import json_text, progress_bar, say
from mxfp4_core.cli.settings import (
    AsJson,
    Jobs,
    Models,
    Quiet,
    Ray,
    Retries,
    given,
    workers,
)

_SHOWN = 20


def verify_command(
    path: Annotated[Path, typer.Argument(parser=given, help="Folder with an MXFP4 checkpoint.")],
    source: Annotated[
        Path | None,
        typer.Option(
            parser=given, metavar="PATH", help="The checkpoint it was made from: quantise again and compare."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            parser=given,
            metavar="PATH",
            help="A checkpoint in high precision: measure the error of each weight, the worst first.",
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Profile of the codes, for files that do not say it.")
    ] = None,
    models: Models = "auto",
    jobs: Jobs = 1,
    ray: Ray = None,
    retries: Retries = 3,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check headers, index, hashes, description and bytes of an MXFP4 checkpoint; exit code 1 if anything is wrong."""
    from mxfp4_core.jobs import verify_checkpoint

    shown = sys.stderr.isatty() and not (quiet or as_json)
    with progress_bar("checking", shown=shown) as progress, workers(jobs, ray, retries) as executor:
        result = verify_checkpoint(
            path,
            source,
            against=against,
            profile=profile,
            models=models,
            progress=progress,
            executor=executor,
        )
    if as_json:
        typer.echo(json_text(result.to_dict()))
    else:
        for check in result.checks:
            say(f"checked {check}")
        for note in result.notes:
            say(f"note: {note}")
        for layer in result.layers[:_SHOWN]:
            say(f"error {layer}")
        if len(result.layers) > _SHOWN:
            typer.echo(f"... and {len(result.layers) - _SHOWN} better ones; --json lists all")
        for finding in result.findings[:_SHOWN]:
            say(f"WRONG {finding.check}: {finding.where}: {finding.found}")
        if len(result.findings) > _SHOWN:
            typer.echo(f"... and {len(result.findings) - _SHOWN} more; --json lists all")
        verdict = "good" if result.ok else f"{len(result.findings)} finding(s)"
        rule = f", profile {result.profile}" if result.profile else ""
        weights = f"{result.weights} {result.format.upper()} weights"
        say(f"{result.path}: {weights}, {result.dialect}{rule}: {verdict}")
    if not result.ok:
        raise typer.Exit(1)
