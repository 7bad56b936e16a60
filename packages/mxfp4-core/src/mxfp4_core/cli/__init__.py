"""The command ``mxfp4``: one module per verb, each with a function ``<verb>_command``.

Command modules import nothing but typer at the top, so that ``mxfp4 --help`` answers at once and ``plan`` and
``doctor`` work where torch is missing. They print results to stdout, progress to stderr, and let `Mxfp4Error`
escape: `main` turns it into a message and an exit code.

Exit codes: 0 done, 1 a problem was found (a damaged file, a weight that cannot be quantised, a difference),
2 misuse (a bad option, path or setting), 130 interrupted.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from mxfp4_core.errors import ConfigError, Mxfp4Error, OutputError

# What the list of commands says of each, on one line of 80 columns.
COMMANDS = {
    "plan": "Show what would become MXFP4, and why.",
    "quantize": "Quantise a checkpoint, file to file.",
    "convert": "Convert an MXFP4 checkpoint to another dialect.",
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
    _module = importlib.import_module(f"{__name__}.{_name}")
    app.command(_name, short_help=_about)(getattr(_module, f"{_name}_command"))


def exit_code(error: Mxfp4Error) -> int:
    """Return 2 for errors that another command line avoids, 1 for those that lie in the files."""
    return 2 if isinstance(error, ConfigError | OutputError) else 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        argv: arguments without the program's name; ``sys.argv`` when left out.

    Raises:
        SystemExit: always, with the exit code.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        app(args=arguments, prog_name="mxfp4")
    except Mxfp4Error as error:
        if "--json" in arguments:
            parts = {"type": type(error).__name__, "what": error.what, "seen": error.seen}
            typer.echo(json.dumps({"error": {**parts, "rule": error.rule, "fix": error.fix}}, indent=2))
        else:
            typer.echo(f"mxfp4: {type(error).__name__}: {error}", err=True)
        raise SystemExit(exit_code(error)) from None
    except MemoryError:
        typer.echo("mxfp4: out of memory; free some and run the same command again", err=True)
        raise SystemExit(1) from None


__all__ = ["COMMANDS", "app", "exit_code", "main"]
