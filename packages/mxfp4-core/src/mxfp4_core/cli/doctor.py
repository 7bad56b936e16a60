"""``mxfp4 doctor``: what is installed, which devices are here, which backend would run, and why not another."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distributions, packages_distributions, version
from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mxfp4_core._text import size_text
from mxfp4_core.cli.settings import asked_device
from mxfp4_core.config.words import Activation as Word

if TYPE_CHECKING:
    from mxfp4_core.backend.choices import Choice
    from mxfp4_core.backend.device import Device
    from mxfp4_core.backend.selection import Selection

PACKAGES = ("torch", "numba", "safetensors", "transformers")
TYPES = ("cpu", "cuda", "hip", "npu")
MOST_ROWS = 16
"""A table of kernels with more rows than this is printed with its last rows merged."""


def doctor_command(
    op: Annotated[
        Literal["linear", "moe", "quantize"], typer.Option(help="What is to be computed.")
    ] = "linear",
    n: Annotated[int, typer.Option(help="Output features; of moe the intermediate size.")] = 4096,
    k: Annotated[int, typer.Option(help="Input features; of moe the hidden size.")] = 4096,
    experts: Annotated[int, typer.Option(help="Experts on this rank, for moe.")] = 8,
    top_k: Annotated[int, typer.Option(help="Experts per token, for moe.")] = 2,
    dtype: Annotated[str, typer.Option(help="Dtype of the activations.")] = "bfloat16",
    activation: Annotated[
        Word | None, typer.Option(help="How activations are quantised; as backends usually do if not given.")
    ] = None,
    format: Annotated[str, typer.Option(help="Format of the weights.")] = "mxfp4",
    shared_experts: Annotated[int, typer.Option(help="Experts that every token goes to, for moe.")] = 0,
    tokens: Annotated[
        Literal["flat", "batched", "masked"], typer.Option(help="How the rows of moe arrive.")
    ] = "flat",
    bias: Annotated[bool, typer.Option("--bias", help="The layer has a bias.")] = False,
    device: Annotated[
        str, typer.Option(help="Ask about a device that need not be here, such as cuda:sm_90 or hip:gfx942.")
    ] = "",
    backend: Annotated[str, typer.Option(help="Name the backend, as code would.")] = "",
    fallback: Annotated[str, typer.Option(help="Name the fallback, as code would.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say which backend would run and why; exit code 1 if there is none."""
    from mxfp4_core.backend.device import probe
    from mxfp4_core.backend.problem import Problem
    from mxfp4_core.backend.select import explain
    from mxfp4_core.backend.usual import usual_activation

    found = probe()
    where = asked_device(device) if device else found.devices[0]
    sizes: dict[str, Any] = {"experts": experts, "top_k": top_k} if op == "moe" else {}
    problem = Problem(
        op=op,
        n=n,
        k=k,
        dtype=dtype,
        activation=activation or usual_activation(backend or None, [where]),
        bias=bias,
        format=format,
        shared_experts=shared_experts,
        tokens=tokens,
        device=where,
        **sizes,
    )
    selection = explain(problem, backend=backend or None, fallback=fallback or None)
    notes, table = [*found.notes], choices(selection)
    if problem.device.type not in TYPES:
        notes.append(
            f"no backend of this project is for {problem.device.type!r}: it knows {', '.join(TYPES)}"
        )
    if isinstance(table, str):
        notes, table = [*notes, table], ()
    if as_json:
        devices = [one.__dict__ for one in found.devices]
        data = {"versions": versions(), "devices": devices, "notes": notes, **selection.to_dict()}
        typer.echo(json.dumps(data | {"choices": [row.to_dict() for row in table]}, indent=2))
    else:
        _print(found.devices, notes, selection)
        _print_choices(table)
    raise typer.Exit(0 if selection.choice else 1)


def versions() -> dict[str, str]:
    """Return the versions of Python, of the packages that matter to the core or to a backend, and of this project's."""
    found = {"python": platform.python_version()}
    for name in dict.fromkeys([*PACKAGES, *_named_by_backends()]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = _under_another_name(name) or "not installed"
    ours = {
        dist.name: dist.version for dist in distributions() if dist.name and dist.name.startswith("mxfp4")
    }
    return found | dict(sorted(ours.items()))


def _under_another_name(name: str) -> str:
    """Return version and name of what brings a package's module instead: ROCm's torch has pytorch-triton-rocm.

    All distributions are looked through only where the module is there.
    """
    module = name.replace("-", "_")
    others = packages_distributions().get(module, ()) if find_spec(module) is not None else ()
    return ", ".join(f"{version(each)} ({each})" for each in dict.fromkeys(others))


def _named_by_backends() -> Iterator[str]:
    from mxfp4_core.backend.answers import No
    from mxfp4_core.backend.asking import packages_of
    from mxfp4_core.backend.registry import installed

    for plugin in installed().values():
        loaded = plugin.load()
        if not isinstance(loaded, No):
            yield from packages_of(loaded)


def choices(selection: Selection) -> tuple[Choice, ...] | str:
    """Return the table of kernels of the backend that was chosen, or why it could not be had."""
    from mxfp4_core.backend.asking import choices_of

    if selection.choice is None:
        return ()
    try:
        return choices_of(selection.choice, selection.problem)
    except Exception as error:  # the table is an extra: a broken one must not hide the verdicts
        return f"{selection.choice.name}: choices raised {type(error).__name__}: {error}"


def merged(table: Sequence[Choice], most: int = MOST_ROWS) -> list[Choice]:
    """Return at most about so many rows: the first ones as they are, of the others one for each kernel."""
    if len(table) <= most:
        return list(table)
    alone = most - 4
    rows = list(table[:alone])
    for _, group in groupby(table[alone:], key=lambda row: row.kernel):
        same = list(group)
        names = dict.fromkeys(name for row in same for name in row.settings)
        settings = {
            name: _values([row.settings[name] for row in same if name in row.settings]) for name in names
        }
        rows.append(replace(same[0], last=same[-1].last, settings=settings))
    return rows


def _values(found: Iterable[int | str]) -> str:
    values = list(dict.fromkeys(found))
    numbers = sorted(value for value in values if isinstance(value, int))
    if len(values) > 2 and len(numbers) == len(values):
        return f"{numbers[0]} to {numbers[-1]}"
    return " or ".join(map(str, numbers if len(numbers) == len(values) else values))


def _print_choices(table: Sequence[Choice]) -> None:
    if not table:
        return
    rows = merged(table)
    names = list(dict.fromkeys(name for row in rows for name in row.settings))
    lines = [["tokens", "kernel", *names]]
    for row in rows:
        tokens = f"{row.first}-{row.last}" if row.last > row.first else str(row.first)
        lines.append([tokens, row.kernel, *(str(row.settings.get(name, "")) for name in names)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    typer.echo("kernels, by the number of tokens in a call")
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo(f"  {'  '.join(cells)}".rstrip())
    if len(rows) < len(table):
        typer.echo(f"  {len(table)} rows, of which the last are merged here; --json lists each")


def _print(devices: tuple[Device, ...], notes: list[str], selection: Selection) -> None:
    typer.echo("versions")
    for name, found in versions().items():
        typer.echo(f"  {name:<20} {found}")
    typer.echo("devices, the first is used")
    for device in devices:
        memory = f", {size_text(device.memory_bytes)}" if device.memory_bytes else ""
        typer.echo(f"  {device}{memory}")
    for note in notes:
        typer.echo(f"  note: {note}")
    typer.echo(f"backends for {selection.problem}")
    for line in selection.trace:
        typer.echo(f"  {line.name:<14} {line.status:<14} {line.reason}".rstrip())
        if line.details:
            typer.echo(f"  {'':<29} {line.details}")
        if line.distribution:
            typer.echo(f"  {'':<29} from {line.distribution}")
        if line.fix:
            typer.echo(f"  {'':<29} fix: {line.fix}")
    if selection.choice is None:
        typer.echo(f"none is used: {selection.reason}\nfix: {selection.fix}")
        return
    typer.echo(f"{selection.choice.name} is used: {selection.reason}")
    if selection.numerics is not None and selection.numerics.emulated:
        need = selection.temporary_bytes
        memory = f", and up to {size_text(need)} of temporary memory" if need else ""
        typer.echo(f"it widens the weights in every call: slow{memory}")


__all__ = ["doctor_command"]
