"""Tell a report about every weight of a model that was loaded by a plan."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mxfp4_core.loader.report import LoadReportBuilder
from mxfp4_core.modules.model_plan import ModelPlan


def count_modules(
    report: LoadReportBuilder, model: nn.Module, plan: ModelPlan, bytes_read: Mapping[str, int]
) -> None:
    """Count every module with weights as quantised or kept.

    Args:
        report: what is told.
        model: with its MXFP4 modules in place.
        plan: what was to be done.
        bytes_read: bytes of each weight as the checkpoint has it, by name; those of its parts where it is missing.
    """
    packed = set()
    for site in plan.sites:
        packed.add(site.path)
        weights = [plan.weights[site.name(name)] for name in site.weights]
        module = model.get_submodule(site.path)
        biases = [name for name, _ in site.module.named_parameters(recurse=False) if name not in site.weights]
        rest = sum(getattr(module, name).nbytes for name in biases)
        after = rest + sum(weight.nbytes for weight in weights)
        before = rest + sum(bytes_read.get(weight.name, weight.nbytes) for weight in weights)
        report.quantised(
            site.path, kind=site.kind, bytes_before=before, bytes_after=after, reason=plan.reasons[site.path]
        )
    counted: set[int] = set()
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if path in packed or not own:
            continue
        reason = plan.reason_of(path, own) or "not a weight"
        nbytes = sum(tensor.nbytes for tensor in own.values() if id(tensor) not in counted)
        counted.update(map(id, own.values()))  # a weight that two modules share is there once
        report.kept(path, kind=type(module).__name__, reason=reason, nbytes=nbytes)


__all__ = ["count_modules"]
