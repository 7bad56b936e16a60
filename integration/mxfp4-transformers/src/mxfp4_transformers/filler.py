"""Read the parts of quantised weights from a checkpoint, a piece at a time, onto the device where they stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.checkpoint import Checkpoint
from mxfp4_core.loader import Key, LoadReportBuilder, Region
from mxfp4_core.modules import Weight
from mxfp4_transformers.compose import Composed
from mxfp4_transformers.targets import Targets

_PIECE = 1 << 20  # bytes that are read at a time; joins hold them twice


@dataclass
class Filler:
    """Fills the weights of one load with what a checkpoint has.

    Attributes:
        targets: where the weights go that stay quantised.
        widened: what it holds in high precision although the checkpoint has it quantised.
        composed: what each of them is made of.
        checkpoint: the files.
        report: counts the time.
        dtype: of what is widened.
    """

    targets: Targets
    widened: Mapping[str, Weight]
    composed: Mapping[str, Composed]
    checkpoint: Checkpoint
    report: LoadReportBuilder
    dtype: torch.dtype

    def __deepcopy__(self, memo: dict[int, Any]) -> Filler:
        # transformers copies a converter for every parameter; one load has one filler.
        return self

    def fill(self, name: str, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the parts of a weight, by their names in the model, or the weight itself where it is widened."""
        if name in self.widened:
            weight = self.widened[name]
            parts = weight.empty(device)
            for part, start, piece in self._pieces(name):
                parts[part][start : start + len(piece)].copy_(piece.view(parts[part].dtype))
            values = MxTensor.from_parts(weight.kind, parts, weight.shape).dequantize(self.dtype)
            return {name: values.transpose(-1, -2).contiguous() if weight.transposed else values}
        target, share = self.targets.at(name, device), self.targets.shares.get(name)
        for part, start, piece in self._pieces(name):
            if share is not None:
                kind = target.format.part(part)
                found = share.part(kind.values, kind.operand == "weight", piece, start)
                if found is None:
                    continue
                start, piece = found
            rows = start, start + len(piece)
            whole = target.whole
            region = Region(rows, *whole.ranges[1:]) if target.stacked else Region((0, 1), rows, whole.cols)
            if target.format.part(part).operand == "input":
                region = Region((0, 1), (0, 1), whole.cols)
            target.put({part: piece}, region, key=Key(part, rows[0] if target.stacked else None))
        return {f"{name}{part.suffix}": target.parts[part.name] for part in target.format.parts}

    def _pieces(self, name: str) -> Iterator[tuple[str, int, torch.Tensor]]:
        """Yield the parts of a weight: name of the part, index in its first axis, and bytes from there."""
        for part, recipe in self.composed[name].parts.items():
            # A part of the input is a row, which is not cut.
            step = max(1, _PIECE // max(1, recipe.row_bytes)) if len(recipe.shape) > 1 else recipe.shape[0]
            for start in range(0, recipe.shape[0], step):
                with self.report.timing("reading"):
                    piece = recipe.load(self.checkpoint, start, min(start + step, recipe.shape[0]))
                    yield part, start, piece
                self.report.sample()


__all__ = ["Filler"]
