"""``mxfp4 convert``: an MXFP4 checkpoint from one dialect to another, without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mxfp4_core.cli.output import print_result, progress_bar, shard_bytes
from mxfp4_core.cli.settings import (
    AsJson,
    DryRun,
    Force,
    Jobs,
    Quiet,
    Ray,
    Retries,
    ShardSize,
    Update,
    given,
    workers,
)
from mxfp4_core.config.known import dialect_names


def convert_command(
    source: Annotated[Path, typer.Argument(parser=given, help="Folder with an MXFP4 checkpoint.")],
    destination: Annotated[Path, typer.Argument(parser=given, help="Folder for the result.")],
    to: Annotated[
        str, typer.Option(help=f"What to write: auto, {', '.join(dialect_names())}; or fp8, nvfp4.")
    ],
    beside: Annotated[
        str,
        typer.Option(
            help="Weights in FP8 beside MXFP4 ones: keep; widen to BF16, which is exact; quantize, which rounds."
        ),
    ] = "keep",
    activation: Annotated[
        str | None,
        typer.Option(
            help="How activations are quantised, where the new dialect has no word for the source's."
        ),
    ] = None,
    lossy: Annotated[
        bool,
        typer.Option(
            "--lossy", help="Let values be rounded on the way to fp8 or nvfp4, and say by how much."
        ),
    ] = False,
    max_shard_size: ShardSize = "5GB",
    jobs: Jobs = 1,
    ray: Ray = None,
    retries: Retries = 3,
    force: Force = False,
    update: Update = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Convert a checkpoint: among dialects of MXFP4 names and config change, codes and scales do not."""
    from mxfp4_core.jobs import convert_checkpoint

    shown = not (quiet or as_json or dry_run)
    with progress_bar("converting", shown=shown) as progress, workers(jobs, ray, retries) as executor:
        result = convert_checkpoint(
            source,
            destination,
            to,
            beside=beside,
            activation=activation,
            lossy=lossy,
            max_shard_bytes=shard_bytes(max_shard_size),
            force=force,
            update=update,
            dry_run=dry_run,
            progress=progress,
            executor=executor,
        )
    print_result(result, as_json=as_json)
