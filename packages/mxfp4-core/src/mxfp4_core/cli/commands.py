"""The verbs of ``mxfp4``: one module for each, with a function ``<verb>_command``."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Annotated

import typer

# What the list of commands says of each, on one line of 80 columns.
COMMANDS = {
    "plan": "Show what would become MXFP4, and why.",
    "quantize": "Quantise a checkpoint, file to file.",
    "convert": "Convert an MXFP4 checkpoint to another dialect.",
    "dequantize": "Write the values of a quantised checkpoint in BF16.",
    "verify": "Check that an MXFP4 checkpoint is what it claims.",
    "report": "Measure the error of each tensor.",
    "doctor": "Say which backend would run, and why.",
    "warmup": "Compile the kernels of the backends ahead of time.",
}

app = typer.Typer(
    name="mxfp4",
    help="MXFP4 for every accelerator: plan, quantize, convert and verify checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mxfp4-core {version('mxfp4-core')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    pass


for _name, _about in COMMANDS.items():
    _module = importlib.import_module(f"mxfp4_core.cli.{_name}")
    app.command(_name, short_help=_about)(getattr(_module, f"{_name}_command"))


__all__ = ["COMMANDS", "app"]
