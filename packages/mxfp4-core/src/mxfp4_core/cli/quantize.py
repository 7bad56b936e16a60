"""``mxfp4 quantize``: a checkpoint in high precision to MXFP4, file to file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mxfp4_core.cli.output import print_result, progress_bar, shard_bytes
from mxfp4_core.cli.settings import (
    Activation,
    AsJson,
    ConfigFile,
    Dialect,
    DryRun,
    FamilyDefaults,
    Force,
    Format,
    FormatsByName,
    Ignore,
    Jobs,
    Models,
    Profile,
    Quiet,
    Ray,
    Retries,
    Rule,
    ShardSize,
    Tail,
    Targets,
    Ties,
    Update,
    given,
    merged_config,
    workers,
)


def quantize_command(
    source: Annotated[
        Path, typer.Argument(parser=given, help="Folder with safetensors files in high precision.")
    ],
    destination: Annotated[Path, typer.Argument(parser=given, help="Folder for the result.")],
    config: ConfigFile = None,
    format: Format = None,
    formats: FormatsByName = None,
    profile: Profile = None,
    rule: Rule = None,
    ties: Ties = None,
    dialect: Dialect = None,
    activation: Activation = None,
    ignore: Ignore = None,
    target_names: Targets = None,
    family_defaults: FamilyDefaults = None,
    tail: Tail = None,
    models: Models = "auto",
    nonfinite: Annotated[str | None, typer.Option(help="NaN or infinity in a weight: refuse or nan.")] = None,
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
    """Quantise a checkpoint to MXFP4, file to file, without building the model.

    A run that was interrupted goes on where it stopped when the same command is given again.
    """
    from mxfp4_core.jobs import quantize_checkpoint

    merged = merged_config(
        config,
        ignore,
        target_names,
        formats,
        format=format,
        profile=profile,
        rule=rule,
        ties=ties,
        dialect=dialect,
        activation=activation,
        family_defaults=family_defaults,
        tail=tail,
        nonfinite=nonfinite,
    )
    shown = not (quiet or as_json or dry_run)
    with progress_bar("quantising", shown=shown) as progress, workers(jobs, ray, retries) as executor:
        result = quantize_checkpoint(
            source,
            destination,
            merged,
            max_shard_bytes=shard_bytes(max_shard_size),
            force=force,
            update=update,
            dry_run=dry_run,
            models=models,
            progress=progress,
            executor=executor,
        )
    print_result(result, as_json=as_json)
