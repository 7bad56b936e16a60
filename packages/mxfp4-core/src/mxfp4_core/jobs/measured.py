"""Measure one tensor: as stored in MXFP4, as several profiles would store it, or as kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.arithmetic.quantize import quantize
from mxfp4_core.dialects.recipes import Read
from mxfp4_core.errors import ConfigError, ShapeError
from mxfp4_core.jobs.metrics import Metrics
from mxfp4_core.jobs.pieces import CHUNK_VALUES, Piece, flat, logical_shape, matrix, pieces, read_piece
from mxfp4_core.jobs.tally import Tally

if TYPE_CHECKING:
    import torch

    from mxfp4_core.arithmetic.formats.base import Format, Part
    from mxfp4_core.checkpoint.header import TensorInfo
    from mxfp4_core.checkpoint.reader import Checkpoint
    from mxfp4_core.dialects import Entry
    from mxfp4_core.dialects.recipes import Recipe

Progress = Callable[[str, int], None]
"""Called with the name of a tensor and the bytes of the source that were done since the last call."""

_QUANTISABLE = ("BF16", "F16", "F32")
_FLOATS = (*_QUANTISABLE, "F64")


def measured_error(
    source: Checkpoint,
    info: TensorInfo,
    quantised: Checkpoint,
    entry: Entry,
    progress: Progress | None = None,
) -> dict[int | None, Metrics]:
    """Compare a tensor with its parts in a quantised checkpoint.

    Returns:
        Metrics by expert for stacked tensors, else one under None.

    Raises:
        ConfigError: a source that is not in BF16, FP16 or FP32.
        ShapeError: the two do not have the same shape.
    """
    _check_dtype(info)
    _check_shape(info, entry)
    import torch

    tallies: dict[int | None, Tally] = {}
    form = formats.get(entry.format)
    stored = _Stored(entry, form, quantised)
    for piece in pieces(entry.shape, transposed=entry.transposed, block=form.block):
        weight = read_piece(source, info.name, piece, transposed=entry.transposed)
        parts = stored.parts(piece)
        tally = tallies.setdefault(piece.expert, Tally())
        if form is MXFP4:
            tally.add(weight, parts["codes"], parts["scales"], more=piece.first > 0)
        else:  # their scales are no bytes to count, so the values are compared
            tally.add_plain(weight, form.dequantize(parts, torch.float32)[:, : weight.shape[-1]])
        if progress:
            progress(info.name, weight.nbytes)
    return _finish(tallies)


class _Stored:
    """Reads the parts that belong to a piece."""

    def __init__(self, entry: Entry, form: Format, quantised: Checkpoint) -> None:
        self._source, self._form, self._k = quantised, form, entry.shape[-1]
        self._recipes = {part: matrix(entry.parts[part.name]) for part in form.weight_parts}
        self._rows: tuple[int, int] | None = None
        self._held: dict[Part, torch.Tensor] = {}

    def parts(self, piece: Piece) -> dict[str, torch.Tensor]:
        """Return them by name, ``[rows, values of the piece / values of an element]``."""
        first, last = piece.first, self._form.physical_k(self._k if piece.last is None else piece.last)
        cut = {part: (first // part.values, last // part.values) for part in self._recipes}
        rows = piece.start, piece.stop
        if piece.stop - piece.start == 1:
            return {part.name: self._of_a_row(part, piece.start, *cut[part]) for part in self._recipes}
        if self._rows != rows:  # pieces of rows that lie apart come one behind the other
            self._held = {part: recipe.load(self._source, *rows) for part, recipe in self._recipes.items()}
            self._rows = rows
        return {part.name: held[:, slice(*cut[part])] for part, held in self._held.items()}

    def _of_a_row(self, part: Part, row: int, first: int, last: int) -> torch.Tensor:
        recipe = self._recipes[part]
        start = row * recipe.shape[-1]
        return flat(recipe).load(self._source, start + first, start + last).reshape(1, -1)


def compared_error(
    source: Checkpoint,
    info: TensorInfo,
    variants: Sequence[str],
    progress: Progress | None = None,
    *,
    transposed: bool = False,
) -> dict[str, dict[int | None, Metrics]]:
    """Quantise a tensor with each profile, piece by piece, and keep the figures.

    Args:
        source: the checkpoint.
        info: the tensor.
        variants: names of resolved profiles.
        progress: called after each piece.
        transposed: whether the file has the axes ``[..., k, n]``.

    Returns:
        By profile what `measured_error` returns.

    Raises:
        ConfigError: a source that is not in BF16, FP16 or FP32.
    """
    _check_dtype(info)
    tallies: dict[str, dict[int | None, Tally]] = {variant: {} for variant in variants}
    for piece in pieces(logical_shape(info.shape, transposed=transposed), transposed=transposed):
        weight = read_piece(source, info.name, piece, transposed=transposed)
        for variant, own in tallies.items():
            tensor = quantize(weight, profile=variant, tail="pad", nonfinite="nan", name=info.name)
            tally = own.setdefault(piece.expert, Tally())
            tally.add(weight, tensor.codes, tensor.scales, more=piece.first > 0)
        if progress:
            progress(info.name, weight.nbytes)
    return {variant: _finish(own) for variant, own in tallies.items()}


def kept_error(
    source: Checkpoint,
    info: TensorInfo,
    quantised: Checkpoint,
    recipe: Recipe,
    progress: Progress | None = None,
) -> tuple[Metrics | None, str]:
    """Compare a tensor that stayed in high precision with its source.

    Args:
        source: the checkpoint in high precision.
        info: what it says of the tensor.
        quantised: the other one.
        recipe: how the tensor is made from what that one stores, maybe under another name or in another order.
        progress: called once.

    Returns:
        The error if any value differs, else None; and what a reader should know about it, empty if nothing.
    """
    if progress:
        progress(info.name, info.nbytes)
    if recipe.shape != info.shape:
        return None, f"kept, but with shape {list(recipe.shape)} where the source has {list(info.shape)}"
    same, floats = recipe.dtype == info.dtype, {recipe.dtype, info.dtype} <= set(_FLOATS)
    sides = (flat(Read(info.dtype, info.shape, info.name)), source), (flat(recipe), quantised)
    if same and _equal(*sides):
        return None, ""
    if not floats:
        return None, f"kept, but as {recipe.dtype} with other values than the source in {info.dtype}"
    tally = Tally()
    for value, stored in _pairs(*sides):
        tally.add_plain(value, stored)
    metrics = tally.metrics()
    if metrics.state == "exact":
        return None, ""
    return metrics, f"kept as {recipe.dtype}, but its values differ from those of the source"


def _equal(*sides: tuple[Recipe, Checkpoint]) -> bool:
    import torch

    return all(torch.equal(*(each.view(torch.uint8) for each in pair)) for pair in _pairs(*sides))


def _pairs(*sides: tuple[Recipe, Checkpoint]) -> Iterator[list[torch.Tensor]]:
    """Yield the same values of two tensors of one length, as many at a time as a piece has."""
    (values,) = sides[0][0].shape
    for start in range(0, values, CHUNK_VALUES):
        stop = min(start + CHUNK_VALUES, values)
        yield [read.load(checkpoint, start, stop) for read, checkpoint in sides]


def _finish(tallies: dict[int | None, Tally]) -> dict[int | None, Metrics]:
    return {expert: tally.metrics() for expert, tally in tallies.items()} or {None: Tally().metrics()}


def _check_dtype(info: TensorInfo) -> None:
    if info.dtype not in _QUANTISABLE:
        raise ConfigError(
            f"the error of {info.name} cannot be measured",
            seen=f"the source has it as {info.dtype}",
            rule=f"weights are quantised from {', '.join(_QUANTISABLE)}",
            fix="give the checkpoint in high precision as the source, or ignore this tensor in the config",
        )


def _check_shape(info: TensorInfo, entry: Entry) -> None:
    if logical_shape(info.shape, transposed=entry.transposed) != entry.shape:
        raise ShapeError(
            f"{info.name} is not the tensor that was quantised",
            seen=f"{list(info.shape)} in the source, {list(entry.shape)} in the quantised checkpoint",
            rule="a report compares a checkpoint with the one that it was made from",
            fix="give the checkpoint that was quantised as --source",
        )


__all__ = ["Progress", "compared_error", "kept_error", "measured_error"]
