"""``mxfp4 plan``: what would happen to a checkpoint, from its headers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mxfp4_core.cli.output import json_text, shard_bytes
from mxfp4_core.cli.settings import (
    Activation,
    ConfigFile,
    Dialect,
    FamilyDefaults,
    Format,
    FormatsByName,
    Ignore,
    Models,
    Profile,
    Rule,
    Tail,
    Targets,
    Ties,
    asked_device,
    given,
    here,
    merged_config,
)

if TYPE_CHECKING:
    from mxfp4_core.config.schema import Mxfp4Config


def plan_command(
    model: Annotated[
        Path,
        typer.Argument(
            parser=given, help="Folder with safetensors files in high precision, one file, or a pipeline."
        ),
    ],
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
    tp: Annotated[int, typer.Option("--tp", help="Tensor-parallel size.")] = 1,
    ep: Annotated[int, typer.Option("--ep", help="Expert-parallel size.")] = 1,
    backend: Annotated[str | None, typer.Option(help="Backend to ask about the shapes of one rank.")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Device to ask about, TYPE:ARCH such as hip:gfx950; this one if not given."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Most bytes of the result, such as 6GB: keep what hurts most within it. Reads weights."
        ),
    ] = None,
    hurts: Annotated[
        Path | None,
        typer.Option(
            parser=here,
            metavar="PATH",
            help="With --budget: JSON that says how much each weight hurts; else the error of its values counts.",
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="One line for each tensor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show what would become MXFP4, why, how large it gets and what stands against it. Reads no weights, or all.

    Exits with 1 if there is a finding, such as a shard that would cut a block.
    """
    from mxfp4_core.jobs import Plan, is_pipeline, plan_checkpoint, plan_pipeline

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
    note = ""
    if budget or hurts:
        merged, note = _within(model, merged, budget, hurts, models)
    planner = plan_pipeline if is_pipeline(model) else plan_checkpoint
    result = planner(model, merged, tp=tp, ep=ep, backend=backend, device=place, models=models)
    if note and isinstance(result, Plan):
        result = replace(result, notes=(*result.notes, note))
    if as_json:
        typer.echo(json_text(result.to_dict()))
    else:
        from mxfp4_core.cli.plan_text import print_pipeline, print_plan

        print_plan(result, full=full) if isinstance(result, Plan) else print_pipeline(result, full=full)
    if result.findings:
        raise typer.Exit(1)


def _within(
    model: Path, config: Mxfp4Config, budget: str | None, hurts: Path | None, models: str
) -> tuple[Mxfp4Config, str]:
    """Return the config that keeps what hurts most within a budget, and what a reader should know about it.

    Raises:
        ConfigError: a budget for a pipeline, or one that cannot be kept.
    """
    from mxfp4_core.errors import ConfigError
    from mxfp4_core.jobs import is_pipeline, plan_checkpoint
    from mxfp4_core.report.budget import errors_of_weights, keep_within, read_hurts

    if budget is None or is_pipeline(model):
        raise ConfigError(
            "--budget and --hurts cannot be carried out",
            seen="--hurts without --budget" if budget is None else f"{model}, which is a pipeline",
            rule="a budget is for one model; what hurts counts where there is a budget",
            fix="add --budget SIZE"
            if budget is None
            else "plan the folder of a component, such as transformer",
        )
    allowed = shard_bytes(budget, "--budget")
    known = read_hurts(hurts) if hurts else errors_of_weights(model, config, models)
    kept = keep_within(plan_checkpoint(model, config, models=models), allowed, known)
    options = " ".join(f"--ignore {pattern}" for pattern in kept.config.ignore)
    left = f"{kept.share_left:.1%} of what quantising hurts is left"
    note = f"the budget keeps {len(kept.names)} weights more; {left}"
    return kept.config, f"{note}: {options}" if options else note


__all__ = ["plan_command"]
