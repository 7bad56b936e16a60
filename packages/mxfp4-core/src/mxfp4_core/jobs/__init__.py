"""From file to file: plan, quantise, convert and verify checkpoints without building the model.

The four functions are called alike: the folders first, then what to do, then keywords; each takes ``progress``, and
returns a result with ``to_dict``. What reads weights consists of tasks on paths, which ``executor`` may spread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.jobs.against import LayerError as LayerError
    from mxfp4_core.jobs.convert import convert_checkpoint as convert_checkpoint
    from mxfp4_core.jobs.dequantize import dequantize_checkpoint as dequantize_checkpoint
    from mxfp4_core.jobs.output import Result as Result
    from mxfp4_core.jobs.pipeline import PipelinePlan as PipelinePlan
    from mxfp4_core.jobs.pipeline import is_pipeline as is_pipeline
    from mxfp4_core.jobs.pipeline import plan_pipeline as plan_pipeline
    from mxfp4_core.jobs.plan import Plan as Plan
    from mxfp4_core.jobs.plan import plan_checkpoint as plan_checkpoint
    from mxfp4_core.jobs.quantize import FLOATS as FLOATS
    from mxfp4_core.jobs.quantize import quantize_checkpoint as quantize_checkpoint
    from mxfp4_core.jobs.ray import RayExecutor as RayExecutor
    from mxfp4_core.jobs.ray import ray_cluster as ray_cluster
    from mxfp4_core.jobs.settled import settings_of as settings_of
    from mxfp4_core.jobs.verified import Verification as Verification
    from mxfp4_core.jobs.verify import Finding as Finding
    from mxfp4_core.jobs.verify import verify_checkpoint as verify_checkpoint
    from mxfp4_core.jobs.workers import processes as processes

_HOMES = {
    "FLOATS": "quantize",
    "plan_checkpoint": "plan",
    "plan_pipeline": "pipeline",
    "is_pipeline": "pipeline",
    "PipelinePlan": "pipeline",
    "quantize_checkpoint": "quantize",
    "convert_checkpoint": "convert",
    "dequantize_checkpoint": "dequantize",
    "settings_of": "settled",
    "verify_checkpoint": "verify",
    "processes": "workers",
    "RayExecutor": "ray",
    "ray_cluster": "ray",
    "Plan": "plan",
    "Result": "output",
    "Verification": "verified",
    "LayerError": "against",
    "Finding": "verify",
}

__all__ = [
    "FLOATS",
    "Finding",
    "LayerError",
    "PipelinePlan",
    "Plan",
    "RayExecutor",
    "Result",
    "Verification",
    "convert_checkpoint",
    "dequantize_checkpoint",
    "is_pipeline",
    "plan_checkpoint",
    "plan_pipeline",
    "processes",
    "quantize_checkpoint",
    "ray_cluster",
    "settings_of",
    "verify_checkpoint",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
