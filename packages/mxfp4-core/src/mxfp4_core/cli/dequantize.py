"""``mxfp4 dequantize``: the values of a quantised checkpoint, in high precision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mxfp4_core.checkpoint.remote import place
from mxfp4_core.cli.output import print_result, progress_bar, shard_bytes
from mxfp4_core.cli.settings import Jobs, Ray, Retries, workers


def dequantize_command(
    source: Annotated[
        Path, typer.Argument(parser=place, help="Folder with a checkpoint in MXFP4, FP8 or NVFP4.")
    ],
    destination: Annotated[Path, typer.Argument(parser=place, help="Folder for the result.")],
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="What values become.")] = "bfloat16",
    max_shard_size: Annotated[str, typer.Option(help="Most data in one file, such as 5GB or 800MB.")] = "5GB",
    jobs: Jobs = 1,
    ray: Ray = None,
    retries: Retries = 3,
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint in the destination.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all that headers tell; write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
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
