"""The options that several commands share, and the config that they and a config file make together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mxfp4_core.config import Mxfp4Config

ConfigFile = Annotated[Path | None, typer.Option(help="Config file (JSON or TOML); options add to it.")]
Profile = Annotated[str | None, typer.Option(help="Named profile: the exact bytes of one peer.")]
Rule = Annotated[str | None, typer.Option(help="Scale rule: even, floor, rceil, ceil or ceil_d(D).")]
Ties = Annotated[str | None, typer.Option(help="Tie rule: even, away or zero.")]
Dialect = Annotated[str | None, typer.Option(help="How to write: mxfp4-core, compressed-tensors or quark.")]
Activation = Annotated[str | None, typer.Option(help="Activations at run time: none, mxfp4 or fp8.")]
Ignore = Annotated[
    list[str] | None, typer.Option(help="Names to keep in high precision; may be given again.")
]
Targets = Annotated[list[str] | None, typer.Option("--target", help="Names to quantise; may be given again.")]
Tail = Annotated[str | None, typer.Option(help="K that is no multiple of 32: refuse or pad.")]


def merged_config(
    file: Path | None, ignore: list[str] | None, targets: list[str] | None, **options: str | None
) -> Mxfp4Config:
    """Return the config of a file with the options of the command line on top; patterns add up.

    Raises:
        ConfigError: unknown or contradicting settings.
    """
    from mxfp4_core.config import Mxfp4Config

    settings = Mxfp4Config.from_file(file).to_dict() if file else {}
    settings.update({key: value for key, value in options.items() if value is not None})
    for key, names in (("ignore", ignore), ("targets", targets)):
        if names:
            settings[key] = [*settings.get(key, []), *names]
    return Mxfp4Config.from_dict(settings)


__all__ = [
    "Activation",
    "ConfigFile",
    "Dialect",
    "Ignore",
    "Profile",
    "Rule",
    "Tail",
    "Targets",
    "Ties",
    "merged_config",
]
