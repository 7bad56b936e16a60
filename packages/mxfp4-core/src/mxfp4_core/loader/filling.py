"""Fill a target with the parts that a checkpoint holds, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from mxfp4_core.dialects.raw import Bytes
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.loader.keys import Key
from mxfp4_core.loader.regions import Region
from mxfp4_core.loader.report import LoadReportBuilder
from mxfp4_core.loader.target import QuantTarget

_PIECE = 1 << 20  # bytes that are read at a time; joins hold them twice


def read_rows(
    parts: Mapping[str, Recipe], source: Bytes, report: LoadReportBuilder
) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Yield the parts of a weight in pieces of whole rows: name of the part, index in its first axis, and the rows.

    Args:
        parts: how each part is made, by its name.
        source: the checkpoint.
        report: counts the time and samples the memory.
    """
    for part, recipe in parts.items():
        # A part of the input is a row, which is not cut.
        step = max(1, _PIECE // max(1, recipe.row_bytes)) if len(recipe.shape) > 1 else recipe.shape[0]
        for start in range(0, recipe.shape[0], step):
            with report.timing("reading"):
                piece = recipe.load(source, start, min(start + step, recipe.shape[0]))
                yield part, start, piece
            report.sample()


def put_rows(target: QuantTarget, part: str, start: int, piece: torch.Tensor) -> None:
    """Put rows of a part into their place.

    Args:
        target: where they go.
        part: name of the part.
        start: index of the first one in the first axis of the part: a row, or an expert of a stack.
        piece: as `read_rows` gives it.

    Raises:
        ShapeError, FormatError, LoadError: as `QuantTarget.put`.
    """
    rows, whole = (start, start + len(piece)), target.whole
    region = Region(rows, *whole.ranges[1:]) if target.stacked else Region((0, 1), rows, whole.cols)
    if target.format.part(part).operand == "input":
        region = Region((0, 1), (0, 1), whole.cols)
    target.put({part: piece}, region, key=Key(part, rows[0] if target.stacked else None))


def fill_target(
    target: QuantTarget, parts: Mapping[str, Recipe], source: Bytes, report: LoadReportBuilder
) -> None:
    """Put all parts of a weight into a target; the bytes are those of the checkpoint.

    Args:
        target: of the weight.
        parts: as all that follow, as for `read_rows`.
        source: see there.
        report: see there.

    Raises:
        ShapeError, FormatError, LoadError: as `QuantTarget.put`.
        CheckpointError: a file cannot be read.
    """
    for part, start, piece in read_rows(parts, source, report):
        put_rows(target, part, start, piece)


__all__ = ["fill_target", "put_rows", "read_rows"]
