"""What a call multiplies: x, and the hidden state of an expert, rounded as kernels do that quantise their input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxfp4_core.arithmetic.activations import fp8
from mxfp4_core.arithmetic.quantize import quantize


@dataclass(frozen=True)
class Inputs:
    """How the input of a product is made from values.

    Attributes:
        kind: ``none``, ``fp8``, or the name of the format that it is quantised to; see `input_format`.
        profile: by which rule, empty for the format's own.
        hidden: what the values are rounded to before they are quantised: ``float32``, or the dtype of the ``input``.
        dtype: of x.
    """

    kind: str
    profile: str
    hidden: str
    dtype: torch.dtype

    def __call__(self, values: Tensor, scale: Tensor | None) -> Tensor:
        """Return float32 values as they are multiplied.

        Args:
            values: x, or a hidden state in float32.
            scale: float32 multiplier of the last axis, applied first, or None.
        """
        if self.kind == "none":
            wide = values.to(torch.float32)
            return wide if scale is None else wide * scale
        if scale is not None:
            values = self._rounded(values).to(torch.float32) * scale
        values = self._rounded(values)
        if self.kind == "fp8":
            return fp8(values)
        made = quantize(
            values, format=self.kind, profile=self.profile or None, tail="pad", nonfinite="nan", name="x"
        )
        return made.dequantize(torch.float32)

    def _rounded(self, values: Tensor) -> Tensor:
        return values.to(self.dtype) if self.hidden == "input" else values


__all__ = ["Inputs"]
