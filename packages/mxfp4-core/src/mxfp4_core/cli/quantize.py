"""``mxfp4 quantize``: a checkpoint in high precision to MXFP4, file to file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mxfp4_core.cli.output import print_result, progress_bar, shard_bytes


def quantize_command(
    source: Annotated[Path, typer.Argument(help="Folder with safetensors files in high precision.")],
    target: Annotated[Path, typer.Argument(help="Folder for the result.")],
    config: Annotated[
        Path | None, typer.Option(help="Config file (JSON or TOML); options add to it.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Named profile: the exact bytes of one peer.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="Scale rule: even, floor, rceil, ceil or ceil_d(D).")
    ] = None,
    ties: Annotated[str | None, typer.Option(help="Tie rule: even, away or zero.")] = None,
    dialect: Annotated[
        str | None, typer.Option(help="How to write: mxfp4-core, compressed-tensors or quark.")
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="Activations at run time: none, mxfp4 or fp8.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Names to keep in high precision; may be given again.")
    ] = None,
    target_names: Annotated[
        list[str] | None, typer.Option("--target", help="Names to quantise; may be given again.")
    ] = None,
    tail: Annotated[str | None, typer.Option(help="K that is no multiple of 32: refuse or pad.")] = None,
    nonfinite: Annotated[str | None, typer.Option(help="NaN or infinity in a weight: refuse or nan.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Most data in one file, such as 5GB or 800MB.")] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint in the target.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all that headers tell; write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Quantise a checkpoint to MXFP4, file to file, without building the model.

    A run that was interrupted goes on where it stopped when the same command is given again.
    """
    from mxfp4_core.config import Mxfp4Config
    from mxfp4_core.pipeline import quantize_checkpoint
    from mxfp4_core.results import Options

    settings = Mxfp4Config.from_file(config).to_dict() if config else {}
    options = {
        "profile": profile,
        "rule": rule,
        "ties": ties,
        "dialect": dialect,
        "activation": activation,
        "tail": tail,
        "nonfinite": nonfinite,
    }
    settings.update({key: value for key, value in options.items() if value is not None})
    for key, names in (("ignore", ignore), ("targets", target_names)):
        if names:
            settings[key] = [*settings.get(key, []), *names]
    with progress_bar("quantising", shown=not (quiet or as_json or dry_run)) as progress:
        result = quantize_checkpoint(
            source,
            target,
            Mxfp4Config.from_dict(settings),
            Options(
                max_shard_bytes=shard_bytes(max_shard_size), force=force, dry_run=dry_run, progress=progress
            ),
        )
    print_result(result, as_json=as_json)
