"""A format that is no pair of codes and scales: a block of 64, a third part of the weight, a part of the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mxfp4_core import _plugins
from mxfp4_core.arithmetic.formats.base import Format, Part, Parts
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4


class Layered(Format):
    """MXFP4 in blocks of 64, each with its largest magnitude beside it, and a multiplier of the input."""

    name = "layered"
    parts = (
        *MXFP4.parts,
        Part("peak", "_peak", "float32", 4, 64, fill=1.0),
        Part("input_scale", "_input_scale", "float32", 4, 1, fill=1.0, operand="input"),
    )
    block = 64

    def quantize_into(self, weight: torch.Tensor, parts: Parts, **options: Any) -> None:
        MXFP4.quantize_into(weight, {name: parts[name] for name in ("codes", "scales")}, **options)
        parts["peak"].copy_(peaks(weight))

    def dequantize(self, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        return MXFP4.dequantize(parts, dtype)


LAYERED = Layered()


def peaks(weight: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of each 64 values."""
    return weight.float().unflatten(-1, (-1, 64)).abs().amax(-1)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the format known, as an installed package would."""
    info = folder / "layered-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: layered\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mxfp4.formats]\nlayered = toy_format:LAYERED\n")
    monkeypatch.syspath_prepend(str(folder))
    _plugins.refresh()
