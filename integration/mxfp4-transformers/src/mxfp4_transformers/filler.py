"""Read the parts of quantised weights from a checkpoint, a piece at a time, onto the device where they stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.checkpoint import Checkpoint
from mxfp4_core.loader import LoadReportBuilder, put_rows, read_rows
from mxfp4_core.modules import Weight
from mxfp4_transformers.compose import Composed
from mxfp4_transformers.targets import Targets


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
            put_rows(target, part, start, piece)
        return {f"{name}{part.suffix}": target.parts[part.name] for part in target.format.parts}

    def _pieces(self, name: str) -> Iterator[tuple[str, int, torch.Tensor]]:
        return read_rows(self.composed[name].parts, self.checkpoint, self.report)


__all__ = ["Filler"]
