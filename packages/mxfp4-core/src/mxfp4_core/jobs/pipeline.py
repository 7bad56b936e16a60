"""Plan a pipeline of diffusers: a folder around several models, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mxfp4_core.backend.device import Device
from mxfp4_core.checkpoint.cache import local_path
from mxfp4_core.checkpoint.files import PIPELINE, folders_with_weights
from mxfp4_core.checkpoint.places import is_file
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import CheckpointError, Mxfp4Error, PatternError
from mxfp4_core.jobs.plan import Plan, plan_checkpoint
from mxfp4_core.naming.families import rows


@dataclass(frozen=True)
class PipelinePlan:
    """The plans for the models of a pipeline.

    Attributes:
        path: the folder of the pipeline.
        plans: the plan of each component that has weights, by its folder.
        errors: why a component has no plan.
    """

    path: str
    plans: Mapping[str, Plan]
    errors: Mapping[str, Mxfp4Error]

    @property
    def findings(self) -> list[str]:
        """Return what stands against carrying out the plans.

        A component of which nothing is quantised is none where another one is, nor is a pattern that is for another.
        """
        useful = {name: plan for name, plan in self.plans.items() if plan.quantized}
        found = [f"{name}: {finding}" for name, plan in useful.items() for finding in plan.findings]
        for name, error in self.errors.items():
            if not (isinstance(error, PatternError) and self.plans):
                found.append(f"{name}: {error.what}: {error.seen}; {error.rule}; {error.fix}")
        if not useful and not found:
            found.append("nothing to quantise in any component; see the reasons")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        plans = {name: plan.to_dict() for name, plan in self.plans.items()}
        errors = {name: {"what": e.what, "seen": e.seen, "fix": e.fix} for name, e in self.errors.items()}
        return {"path": self.path, "components": plans, "errors": errors, "findings": self.findings}


def is_pipeline(path: str | Path) -> bool:
    """Return whether a path, or a name on the Hub that is in the cache, is the folder of a pipeline."""
    return is_file(local_path(path) / PIPELINE)


def plan_pipeline(
    path: str | Path,
    config: Mxfp4Config | None = None,
    *,
    tp: int = 1,
    ep: int = 1,
    backend: str | None = None,
    device: Device | None = None,
    models: str = "auto",
) -> PipelinePlan:
    """Plan each model of a pipeline; arguments are those of `plan_checkpoint`.

    Raises:
        CheckpointError: no folder of the pipeline has safetensors files.
        PatternError: a pattern matches nothing in any component.
    """
    root = local_path(path)
    plans: dict[str, Plan] = {}
    errors: dict[str, Mxfp4Error] = {}
    names = folders_with_weights(root)
    for name in names:
        try:
            plan = plan_checkpoint(
                root / name, config, tp=tp, ep=ep, backend=backend, device=device, models=models
            )
            plans[name] = replace(plan, notes=(*plan.notes, *_of_second(name, plan)))
        except Mxfp4Error as error:
            errors[name] = error
    if not names:
        raise CheckpointError(
            f"cannot plan {path}",
            seen=f"{PIPELINE}, and no folder with safetensors files",
            rule="the models of a pipeline are in its folders",
            fix="get the weights of the pipeline, too",
        )
    if not plans:
        raise errors[names[0]]
    return PipelinePlan(str(path), plans, errors)


def _of_second(name: str, plan: Plan) -> list[str]:
    """Return what others do with the second model of a pipeline that has two of a kind, such as ``transformer_2``."""
    if not name.endswith("_2"):
        return []
    return [
        f"others run the second {plan.model_type} of a pipeline in another way ({row.source}): format={row.second!r}"
        for row in rows(plan.model_type)
        if row.second and plan.config.format != row.second
    ]


__all__ = ["PipelinePlan", "is_pipeline", "plan_pipeline"]
