"""``mxfp4 report``: how much quantising hurts each tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mxfp4_core.cli.settings import Models, Quiet, given, here

DEFAULT_RULES = ("floor", "even", "rceil", "ceil")


def report_command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            parser=given, help="A quantised checkpoint with --source, else one in high precision."
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            parser=given, metavar="PATH", help="The checkpoint that the quantised one was made from."
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="Without --source: a scale rule to try; may be given again. Default: all four."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="Without --source: a profile to try, such as quark or even/away; may be given again."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            parser=here,
            metavar="PATH",
            help="Without --source: config that says which tensors are quantised.",
        ),
    ] = None,
    models: Models = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            parser=here,
            metavar="PATH",
            help="Folder for report.html, .json, .csv and .md, or those asked for.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, to stdout without --out.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV, to stdout without --out.")] = False,
    as_markdown: Annotated[bool, typer.Option("--md", help="Markdown, to stdout without --out.")] = False,
    as_html: Annotated[bool, typer.Option("--html", help="One HTML page, to stdout without --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier report.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure the error of each tensor: of a quantised checkpoint against its source, or of rules not yet applied.

    Exit code 1 if the two checkpoints do not belong together or hold values that are not finite.
    """
    import sys

    from mxfp4_core.checkpoint.reader import open_checkpoint
    from mxfp4_core.cli.output import progress_bar
    from mxfp4_core.config.schema import Mxfp4Config
    from mxfp4_core.report.files import RENDERERS, destinations, write
    from mxfp4_core.report.measure import compare, measure
    from mxfp4_core.report.naming import printable
    from mxfp4_core.report.render import render_text

    asked = {"html": as_html, "json": as_json, "csv": as_csv, "md": as_markdown}
    formats = [each for each, wanted in asked.items() if wanted]
    if out is None and len(formats) > 1:
        raise typer.BadParameter("several formats need --out FOLDER; stdout takes one")
    if source is not None and (rule or profile or config):
        raise typer.BadParameter(
            "--rule, --profile and --config are for a checkpoint that is not quantised yet"
        )
    paths = {} if out is None else destinations(out, formats or list(RENDERERS), force=force)

    command = ["mxfp4", *sys.argv[1:]]
    high = open_checkpoint(checkpoint if source is None else source)
    total, done = sum(info.nbytes for info in high.tensors.values()), 0
    with progress_bar("measuring", shown=not quiet and sys.stderr.isatty()) as show:

        def progress(_name: str, nbytes: int) -> None:
            nonlocal done
            done += nbytes
            show(done, total)

        if source is not None:
            report = measure(high, checkpoint, models=models, progress=progress, command=command)
        else:
            settings = None if config is None else Mxfp4Config.from_file(config)
            variants = [*(rule or []), *(profile or [])] or DEFAULT_RULES
            report = compare(
                high, variants, config=settings, models=models, progress=progress, command=command
            )

    for finding in report.findings:
        typer.echo(f"finding: {printable(finding)}", err=True)
    if out is None and formats:
        typer.echo(RENDERERS[formats[0]](report), nl=False)
    else:
        write(report, paths)
        typer.echo(render_text(report))
        first = next(iter(paths.values()), None)
        hint = " - open it in a browser" if "html" in paths else ""
        typer.echo(
            f"wrote {first}{hint}" if first else "nothing was written; --out FOLDER makes a page with plots"
        )
    if report.findings:
        raise typer.Exit(1)
