"""The options that several commands share, and the config that they and a config file make together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mxfp4_core.checkpoint.remote import RemotePath, place
from mxfp4_core.config.known import dialect_names
from mxfp4_core.config.words import ACTIVATIONS, FORMATS
from mxfp4_core.errors import ConfigError

if TYPE_CHECKING:
    from mxfp4_core.backend.device import Device
    from mxfp4_core.checkpoint.tasks import Executor
    from mxfp4_core.config.schema import Mxfp4Config


def given(text: str) -> Path:
    """Return the path that an argument names.

    Raises:
        ConfigError: it is empty, which Python would take for the current folder.
    """
    if not text:
        raise ConfigError(
            "a path is empty",
            seen="''",
            rule="an argument that is a path names a file or a folder; the current one is '.'",
            fix="write the path; where it comes from a variable of the shell, set that first",
        )
    return place(text)


def here(text: str) -> Path:
    """Return the path that an argument names, which is one of this machine.

    Raises:
        ConfigError: it is empty, or a path of another machine.
    """
    path = given(text)
    if isinstance(path, RemotePath):
        raise ConfigError(
            f"cannot use {path}",
            seen="a path of another machine",
            rule="checkpoints may lie in a bucket; config files and reports are files of this machine",
            fix="name a path here, and copy the file",
        )
    return path


ConfigFile = Annotated[
    Path | None,
    typer.Option(parser=here, metavar="PATH", help="Config file (JSON or TOML); options add to it."),
]
Profile = Annotated[str | None, typer.Option(help="Named profile: the exact bytes of one peer.")]
Format = Annotated[
    str | None, typer.Option(help=f"What weights become: {', '.join(FORMATS)}; mxfp4 if none is named.")
]
Rule = Annotated[str | None, typer.Option(help="Scale rule: even, floor, rceil, ceil or ceil_d(D).")]
Ties = Annotated[str | None, typer.Option(help="Tie rule: even, away or zero.")]
Dialect = Annotated[str | None, typer.Option(help=f"How to write: auto, {', '.join(dialect_names())}.")]
Activation = Annotated[str | None, typer.Option(help=f"Activations at run time: {', '.join(ACTIVATIONS)}.")]
Ignore = Annotated[
    list[str] | None, typer.Option(help="Names to keep in high precision; may be given again.")
]
Targets = Annotated[list[str] | None, typer.Option("--target", help="Names to quantise; may be given again.")]
FamilyDefaults = Annotated[
    bool | None,
    typer.Option(
        "--family-defaults/--no-family-defaults",
        help="Keep what the table of model families keeps, such as vision towers (the default).",
        show_default=False,
    ),
]
Jobs = Annotated[
    int, typer.Option(help="Processes that work at a time, each on one file and with its own memory.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster whose nodes do the work: auto, HOST:PORT, ray://HOST:PORT, or local for one of its own."
    ),
]
Retries = Annotated[
    int, typer.Option(help="How often the work of a process or node that was killed is done by others.")
]
Models = Annotated[
    str,
    typer.Option(
        help="Who says what the weights are: auto (installed model providers), none (names), or one by name."
    ),
]
FormatsByName = Annotated[
    list[str] | None,
    typer.Option("--as", help="Another format for some names: PATTERN=FORMAT; may be given again."),
]
Tail = Annotated[str | None, typer.Option(help="K that is no multiple of 32: refuse or pad.")]
ShardSize = Annotated[str, typer.Option(help="Most data in one file, such as 5GB or 800MB.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a checkpoint in the destination.")]
Update = Annotated[
    bool,
    typer.Option(
        "--update", help="Replace a checkpoint, but keep weight files that would come out the same."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check all that headers tell; write nothing.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def merged_config(
    file: Path | None,
    ignore: list[str] | None,
    targets: list[str] | None,
    formats: list[str] | None = None,
    **options: str | bool | None,
) -> Mxfp4Config:
    """Return the config of a file with the options of the command line on top; patterns and overrides add up.

    Raises:
        ConfigError: unknown or contradicting settings.
        BadParameter: ``formats`` has something else than PATTERN=FORMAT.
    """
    from mxfp4_core.config.schema import Mxfp4Config

    settings = Mxfp4Config.from_file(file).model_dump(mode="json", exclude_unset=True) if file else {}
    settings.update({key: value for key, value in options.items() if value is not None})
    for key, names in (("ignore", ignore), ("targets", targets)):
        if names:
            settings[key] = [*settings.get(key, []), *names]
    for text in formats or ():
        pattern, equals, format = text.rpartition("=")
        if not (pattern and equals and format):
            raise typer.BadParameter(f"--as takes PATTERN=FORMAT, such as lm_head=mxfp8, not {text!r}")
        settings["overrides"] = [*settings.get("overrides", []), {"pattern": pattern, "format": format}]
    return Mxfp4Config.from_dict(settings)


@contextmanager
def workers(jobs: int, ray: str | None, retries: int) -> Iterator[Executor | None]:
    """Start or find who does the work: processes of this machine, or a Ray cluster.

    Raises:
        ConfigError: both are asked for, or what is asked for cannot be had.
    """
    from mxfp4_core.errors import ConfigError
    from mxfp4_core.jobs import processes, ray_cluster

    if ray is None:
        with processes(jobs, retries=retries) as pools:
            yield pools
        return
    if jobs != 1:
        raise ConfigError(
            "--jobs and --ray cannot be used together",
            seen=f"--jobs {jobs} --ray {ray}",
            rule="either processes of this machine do the work, or a cluster, which knows its processors",
            fix="leave one of them out",
        )
    with ray_cluster(ray, retries=retries) as cluster:
        yield cluster


def asked_device(text: str) -> Device:
    """Read the device of ``--device``: TYPE:ARCH, or TYPE or TYPE:NUMBER for one that is here.

    CUDA's architectures are understood as ``sm_90``, ``sm90``, ``90`` and ``9.0``.

    Raises:
        ConfigError: a GPU without its architecture, and none of this type and number is here.
    """
    from mxfp4_core.backend.device import Device, probe
    from mxfp4_core.errors import ConfigError

    kind, _, arch = text.strip().lower().partition(":")
    if kind == "cuda" and (found := re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d[af]?)", arch)):
        arch = f"sm_{found[1]}{found[2]}"
    if arch and not arch.isdigit():
        return Device(kind, arch)
    for device in probe().devices:
        if (device.type, device.index) == (kind, int(arch or 0)):
            return device
    if kind in ("cuda", "hip"):
        raise ConfigError(
            "--device",
            seen=repr(text),
            rule="a GPU that is not here is named by its type and its architecture",
            fix="write cuda:sm_90 for an H100 or H200, hip:gfx942 for an MI300, hip:gfx950 for an MI350",
        )
    return Device(kind, "unknown")


__all__ = [
    "Activation",
    "AsJson",
    "ConfigFile",
    "Dialect",
    "DryRun",
    "FamilyDefaults",
    "Force",
    "Format",
    "FormatsByName",
    "Ignore",
    "Jobs",
    "Models",
    "Profile",
    "Quiet",
    "Ray",
    "Retries",
    "Rule",
    "ShardSize",
    "Tail",
    "Targets",
    "Ties",
    "Update",
    "asked_device",
    "merged_config",
    "workers",
]
