"""From file to file: plan, quantise, convert and verify checkpoints without building the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.jobs.convert import convert_checkpoint as convert_checkpoint
    from mxfp4_core.jobs.output import Options as Options
    from mxfp4_core.jobs.output import Result as Result
    from mxfp4_core.jobs.quantize import quantize_checkpoint as quantize_checkpoint
    from mxfp4_core.jobs.verify import verify_checkpoint as verify_checkpoint

_HOMES = {
    "quantize_checkpoint": "quantize",
    "convert_checkpoint": "convert",
    "verify_checkpoint": "verify",
    "Options": "output",
    "Result": "output",
}

__all__ = [
    "Options",
    "Result",
    "convert_checkpoint",
    "quantize_checkpoint",
    "verify_checkpoint",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
