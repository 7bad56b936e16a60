"""``mxfp4 plan``: what would happen to a checkpoint, from its headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan_command(
    model: Annotated[
        Path, typer.Argument(help="Folder with safetensors files in high precision, or one file.")
    ],
    config: Annotated[
        Path | None, typer.Option(help="Config file (JSON or TOML); options add to it.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Named profile: the exact bytes of one peer.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="Scale rule: even, floor, rceil, ceil or ceil_d(D).")
    ] = None,
    ties: Annotated[str | None, typer.Option(help="Tie rule: even, away or zero.")] = None,
    dialect: Annotated[
        str | None, typer.Option(help="How it would be written: mxfp4-core, compressed-tensors or quark.")
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

    Exits with 1 if there is a problem, such as a shard that would cut a block.
    """
    import json

    from mxfp4_core.config import Mxfp4Config
    from mxfp4_core.plan import plan

    settings = Mxfp4Config.from_file(config).to_dict() if config else {}
    options = {
        "profile": profile,
        "rule": rule,
        "ties": ties,
        "dialect": dialect,
        "activation": activation,
        "tail": tail,
    }
    settings.update({key: value for key, value in options.items() if value is not None})
    for key, names in (("ignore", ignore), ("targets", target_names)):
        if names:
            settings[key] = [*settings.get(key, []), *names]
    place = None
    if device and not (backend or settings.get("backend")):
        from mxfp4_core.errors import ConfigError

        raise ConfigError(
            "--device has no effect",
            seen=f"--device {device} and no backend",
            rule="a device is what a backend is asked about",
            fix="add --backend NAME",
        )
    if device:
        from mxfp4_core.device import Device

        kind, _, arch = device.partition(":")
        place = Device(kind, arch or "unknown")
    result = plan(model, Mxfp4Config.from_dict(settings), tp=tp, ep=ep, backend=backend, device=place)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        from mxfp4_core.cli.plan_text import print_plan

        print_plan(result, full=full)
    if result.problems:
        raise typer.Exit(1)


__all__ = ["plan_command"]
