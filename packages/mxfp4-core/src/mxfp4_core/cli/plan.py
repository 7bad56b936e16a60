"""``mxfp4 plan``: what would happen to a checkpoint, from its headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mxfp4_core.cli.settings import (
    Activation,
    ConfigFile,
    Dialect,
    Format,
    Ignore,
    Models,
    Profile,
    Rule,
    Tail,
    Targets,
    Ties,
    asked_device,
    merged_config,
)


def plan_command(
    model: Annotated[
        Path,
        typer.Argument(help="Folder with safetensors files in high precision, one file, or a pipeline."),
    ],
    config: ConfigFile = None,
    format: Format = None,
    profile: Profile = None,
    rule: Rule = None,
    ties: Ties = None,
    dialect: Dialect = None,
    activation: Activation = None,
    ignore: Ignore = None,
    target_names: Targets = None,
    tail: Tail = None,
    models: Models = "auto",
    tp: Annotated[int, typer.Option("--tp", help="Tensor-parallel size.")] = 1,
    ep: Annotated[int, typer.Option("--ep", help="Expert-parallel size.")] = 1,
    backend: Annotated[str | None, typer.Option(help="Backend to ask about the shapes of one rank.")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Device to ask about, TYPE:ARCH such as hip:gfx950; this one if not given."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="One line for each tensor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show what would become MXFP4, why, how large it gets and what stands against it. Reads no weights.

    Exits with 1 if there is a finding, such as a shard that would cut a block.
    """
    import json

    from mxfp4_core.jobs import is_pipeline, plan_checkpoint, plan_pipeline

    merged = merged_config(
        config,
        ignore,
        target_names,
        format=format,
        profile=profile,
        rule=rule,
        ties=ties,
        dialect=dialect,
        activation=activation,
        tail=tail,
    )
    place = None
    if device and not (backend or merged.backend):
        from mxfp4_core.errors import ConfigError

        raise ConfigError(
            "--device has no effect",
            seen=f"--device {device} and no backend",
            rule="a device is what a backend is asked about",
            fix="add --backend NAME",
        )
    if device:
        place = asked_device(device)
    planner = plan_pipeline if is_pipeline(model) else plan_checkpoint
    result = planner(model, merged, tp=tp, ep=ep, backend=backend, device=place, models=models)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        from mxfp4_core.cli.plan_text import print_pipeline, print_plan
        from mxfp4_core.jobs import Plan

        print_plan(result, full=full) if isinstance(result, Plan) else print_pipeline(result, full=full)
    if result.findings:
        raise typer.Exit(1)


__all__ = ["plan_command"]
