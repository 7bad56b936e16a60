"""Dequantise a checkpoint file to file: MXFP4, and other kinds that can be read, to BF16 or F32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.checkpoint.assemble import DEFAULT_SHARD_BYTES
from mxfp4_core.checkpoint.manifest import Manifest, source_fingerprint
from mxfp4_core.checkpoint.remote import place
from mxfp4_core.checkpoint.tasks import Executor
from mxfp4_core.config.messages import unknown_name
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import AUTO_CLASS, Entry
from mxfp4_core.dialects.beside import Beside, Narrow
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs.described import describe_contents
from mxfp4_core.jobs.made import Dequantized
from mxfp4_core.jobs.opened import open_any
from mxfp4_core.jobs.output import Report, Result, check_apart, content_of, loading_class, write_result
from mxfp4_core.jobs.units import CopyUnit

DTYPES = {"bfloat16": "BF16", "float32": "F32"}
"""What values can become, by the name of torch."""

_EXACT = ("mxfp4", "mxfp8")
"""Formats whose values BF16 has, within its range."""


class _HighPrecision:
    """How the result is loaded: as any model."""

    name = "high precision"
    components = False

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        return f"import transformers; transformers.{model}.from_pretrained({path!r})"


def dequantize_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    force: bool = False,
    dry_run: bool = False,
    progress: Report | None = None,
    executor: Executor | None = None,
) -> Result:
    """Write the values of a quantised checkpoint in high precision, under the names and axes of the model.

    MXFP4 and MXFP8 become BF16 without rounding, and so does FP8 whose scales are powers of two; a value that is larger
    than all of BF16 is an error. What has scales of other kinds (two levels, NVFP4, FP-Quant, FP8 with float scales)
    is rounded once, ties to even, and ``notes`` of the result say so.

    Args:
        source: folder with a checkpoint in a dialect that is read, in FP8, or in NVFP4.
        destination: folder for the result.
        dtype: of the values.
        max_shard_bytes: as for `convert_checkpoint`, and all that follow.
        force: see there.
        dry_run: see there.
        progress: see there.
        executor: see there.

    Raises:
        CheckpointError, OutputError: as `convert_checkpoint`.
        ConfigError: no such dtype.
        DialectError: nothing is quantised, or in a way that is not read; a weight whose input is multiplied first,
            which values alone do not say; a value that the dtype does not have.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, list(DTYPES))
    folder = place(destination)
    check_apart(place(source), folder)
    checkpoint, _, contents = open_any(source, "dequantize")
    stored: dict[str, Recipe] = dict(contents.tensors)
    rounds: dict[str, None] = {}
    for name, entry in contents.entries.items():
        stored[name] = _turned(entry, _made(Dequantized(name, _plain(entry)), DTYPES[dtype], rounds))
    for name, each in contents.beside.items():
        stored[name] = _made(each, DTYPES[dtype], rounds)
    order = {name: number for number, name in enumerate(checkpoint.tensors)}
    ordered = sorted(stored.items(), key=lambda pair: order[pair[1].names[0]])
    units = [CopyUnit(checkpoint, (each,)) for each in ordered]
    model = checkpoint.config if contents.model is None else contents.model
    document = {key: value for key, value in model.items() if key != "quantization_config"}
    config = Mxfp4Config.from_dict({})
    manifest = Manifest("", {"dtype": dtype}, config.fingerprint(), "", source_fingerprint(checkpoint))
    content = content_of(checkpoint, units, {"config.json": document}, manifest)
    known = describe_contents(model, contents)
    result = write_result(
        folder,
        content,
        _HighPrecision(),
        0,
        model=loading_class(model, known),
        max_shard_bytes=max_shard_bytes,
        force=force,
        dry_run=dry_run,
        progress=progress,
        executor=executor,
    )
    notes = [
        f"{kind}: rounded to {DTYPES[dtype]} where that does not have a value, ties to even"
        for kind in rounds
    ]
    if contents.static:
        first = next(iter(contents.static))
        notes.append(
            f"{len(contents.static)} tensor(s) that only quantised layers have are left out, for example {first}"
        )
    kinds = known.source if known.unknown or known.refused else ""
    return replace(result, kinds=kinds, notes=tuple(notes), format=DTYPES[dtype])


def _made(weight: Narrow, dtype: str, rounds: dict[str, None]) -> Recipe:
    """Return the recipe for the values: exact where such weights are, else rounded, and noted."""
    exact = isinstance(weight, Dequantized) and weight.entry.format in _EXACT
    if isinstance(weight, Beside):
        exact = weight.scales.dtype in ("F8_E8M0", "U8")
    if exact and dtype == "BF16":
        return weight.widened
    if not exact:
        rounds[weight.told] = None
    return weight.rounded(dtype)


def _plain(entry: Entry) -> Entry:
    """Refuse a weight whose input is multiplied before: its values alone are not what the model computes with."""
    if formats.get(entry.format).scales_input:
        raise DialectError(
            f"tensor {entry.weight!r} cannot be dequantised",
            seen=f"format {entry.format}",
            rule="its layer multiplies the input first, which a weight in high precision does not say",
            fix="use the checkpoint as it is, or start from the one in high precision",
        )
    return entry


def _turned(entry: Entry, values: Recipe) -> Recipe:
    """Give the values the axes that the model has."""
    if not entry.transposed:
        return values
    last = len(values.shape) - 1
    return values.permute(*range(last - 1), last, last - 1)


__all__ = ["DTYPES", "dequantize_checkpoint"]
