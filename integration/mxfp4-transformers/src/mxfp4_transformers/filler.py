"""Read the parts of quantised weights from a checkpoint, a piece at a time, onto the device where they stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.checkpoint import Checkpoint
from mxfp4_core.loader import LoadReportBuilder
from mxfp4_core.modules import Weight
from mxfp4_transformers.compose import Composed

_PIECE = 8 << 20  # bytes that are read at a time


@dataclass
class Filler:
    """Fills the weights of one load with what a checkpoint has.

    Attributes:
        weights: what the model holds quantised, by name.
        widened: what it holds in high precision although the checkpoint has it quantised.
        composed: what each of them is made of.
        checkpoint: the files.
        device_of: where a weight goes.
        report: counts the time.
        dtype: of what is widened.
    """

    weights: Mapping[str, Weight]
    widened: Mapping[str, Weight]
    composed: Mapping[str, Composed]
    checkpoint: Checkpoint
    device_of: Callable[[str], torch.device]
    report: LoadReportBuilder
    dtype: torch.dtype

    def __deepcopy__(self, memo: dict[int, Any]) -> Filler:
        # transformers copies a converter for every parameter; one load has one filler.
        return self

    def fill(self, name: str) -> dict[str, torch.Tensor]:
        """Return the parts of a weight, by their names in the model, or the weight itself where it is widened."""
        if name in self.widened:
            weight = self.widened[name]
            tensor = MxTensor.from_parts(weight.kind, self._parts(weight), weight.shape)
            values = tensor.dequantize(self.dtype)
            return {name: values.transpose(-1, -2).contiguous() if weight.transposed else values}
        weight = self.weights[name]
        return {weight.names[part]: tensor for part, tensor in self._parts(weight).items()}

    def _parts(self, weight: Weight) -> dict[str, torch.Tensor]:
        parts = weight.empty(self.device_of(weight.name))
        for part, recipe in self.composed[weight.name].parts.items():
            into = parts[part]
            step = max(1, _PIECE // max(1, recipe.row_bytes))
            for start in range(0, recipe.shape[0], step):
                stop = min(start + step, recipe.shape[0])
                with self.report.timing("reading"):
                    into[start:stop].copy_(recipe.load(self.checkpoint, start, stop).view(into.dtype))
                self.report.sample()
        return parts


__all__ = ["Filler"]
