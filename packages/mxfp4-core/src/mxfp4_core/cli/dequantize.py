"""``mxfp4 dequantize``: the values of a quantised checkpoint, in high precision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    given,
    workers,
)


def dequantize_command(
    source: Annotated[
        Path, typer.Argument(parser=given, help="Folder with a checkpoint in MXFP4, FP8 or NVFP4.")
    ],
    destination: Annotated[Path, typer.Argument(parser=given, help="Folder for the result.")],
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="What values become.")] = "bfloat16",
    max_shard_size: ShardSize = "5GB",
    jobs: Jobs = 1,
    ray: Ray = None,
    retries: Retries = 3,
    force: Force = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the values of a quantised checkpoint under the names and axes of the model: exact from MXFP4 to BF16."""
    from mxfp4_core.jobs import dequantize_checkpoint

    shown = not (quiet or as_json or dry_run)
    with progress_bar("dequantising", shown=shown) as progress, workers(jobs, ray, retries) as executor:
        result = dequantize_checkpoint(
            source,
            destination,
            dtype=dtype,
            max_shard_bytes=shard_bytes(max_shard_size),
            force=force,
            dry_run=dry_run,
            progress=progress,
            executor=executor,
        )
    print_result(result, as_json=as_json)
