"""Formats whose input is multiplied before it is quantised: any format and one part more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mxfp4_core.arithmetic.formats.base import Format, Part, Parts
from mxfp4_core.arithmetic.formats.dual import MXFP4_DUAL
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.arithmetic.formats.mxfp8 import MXFP8

if TYPE_CHECKING:
    import torch

    from mxfp4_core.arithmetic.profile import Profile

INPUT_SCALE = Part("input_scale", "_input_scale", "float32", 4, 1, fill=1.0, operand="input")


class InputScaled(Format):
    """The parts of another format, and ``input_scale`` float32 ``[K]``: x is multiplied by it, then quantised.

    The weight is stored as it comes: whoever makes the multipliers has divided the weight by them.
    """

    def __init__(self, base: Format) -> None:
        self.base = base
        self.name = f"{base.name}+{INPUT_SCALE.name}"
        self.parts = (*base.parts, INPUT_SCALE)
        self.block = base.block

    @property
    def of_weight(self) -> str:
        """Name of the other format."""
        return self.base.name

    def input_format(self, activation: str) -> str:
        """Return what the other format does."""
        return self.base.input_format(activation)

    @property
    def profiles(self) -> tuple[str, ...]:
        """Those of the other format."""
        return self.base.profiles

    def resolve(
        self, profile: str | None = None, *, rule: str | None = None, ties: str | None = None
    ) -> Profile:
        """Return what the other format does."""
        return self.base.resolve(profile, rule=rule, ties=ties)

    def quantize_into(
        self,
        weight: torch.Tensor,
        parts: Parts,
        *,
        profile: str,
        nonfinite: Literal["refuse", "nan"] = "refuse",
        name: str = "weight",
        threads: int | None = None,
    ) -> None:
        """Quantise as the other format does; the multipliers are left alone."""
        self.base.quantize_into(
            weight, parts, profile=profile, nonfinite=nonfinite, name=name, threads=threads
        )

    def dequantize(self, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Return the values of the weight, as the other format does."""
        return self.base.dequantize({part.name: parts[part.name] for part in self.base.parts}, dtype)


MXFP4_INPUT_SCALE = InputScaled(MXFP4)
MXFP4_DUAL_INPUT_SCALE = InputScaled(MXFP4_DUAL)
MXFP8_INPUT_SCALE = InputScaled(MXFP8)

__all__ = ["INPUT_SCALE", "MXFP4_DUAL_INPUT_SCALE", "MXFP4_INPUT_SCALE", "MXFP8_INPUT_SCALE", "InputScaled"]
