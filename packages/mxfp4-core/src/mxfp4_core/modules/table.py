"""Say in words which weights of a loaded model are MXFP4, and why the others are not."""

from __future__ import annotations

import re

from torch import nn

from mxfp4_core.modules.base import Mxfp4Module
from mxfp4_core.modules.held import Mxfp4Held
from mxfp4_core.modules.model_plan import ModelPlan
from mxfp4_core.naming.vocabulary import ranges

_NUMBER = re.compile(r"(?<=\.)\d{1,9}(?=\.|$)")


def summary(model: nn.Module, plan: ModelPlan | None = None) -> str:
    """Return a table of a model's weights: MXFP4 or kept, where, how large, by which profile and backend, and why.

    Layers that differ in their numbers only share a line. ``print(model)`` has the same modules, one by one.

    Args:
        model: with MXFP4 modules in it, or without.
        plan: why each module is what it is; without one, the reasons are left out.

    Returns:
        A heading with the counts, then one line for each group, in the order of the model.
    """
    plan = plan or ModelPlan()
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    packed = total = 0
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        if isinstance(module, Mxfp4Module):
            packed += 1
            state, what = "mxfp4", _packed(module)
        elif own:
            shapes = " ".join(str(list(parameter.shape)) for parameter in own.values())
            state, what = "kept", f"{type(module).__name__} {shapes}"
        else:
            continue
        total += 1
        key = (_NUMBER.sub("*", path), state, what, plan.reason_of(path, own))
        groups.setdefault(key, []).append(path)
    rows = [(state, _collapsed(paths), what, note) for (_, state, what, note), paths in groups.items()]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [f"{type(model).__name__}: {packed} of {total} modules with weights are MXFP4"]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _packed(module: Mxfp4Module) -> str:
    problem = module.problem
    if isinstance(module, Mxfp4Held):
        shapes = " ".join(str(list(shape)) for shape in module.shapes.values())
        return f"{type(module).__name__} {shapes} {module.profile or 'profile unknown'} by its own code"
    shape = f"[{problem.n}, {problem.k}]"
    if problem.experts:
        shape = f"{problem.experts} x (2 x [{problem.n}, {problem.k}] + [{problem.k}, {problem.n}])"
    backend = module.backend.name if module.backend else "not prepared"
    return f"{type(module).__name__} {shape} {module.profile or 'profile unknown'} on {backend}"


def _collapsed(paths: list[str]) -> str:
    columns = zip(*(_NUMBER.findall(path) for path in paths), strict=True)
    numbers = iter([ranges(int(number) for number in column) for column in columns])
    return _NUMBER.sub(lambda match: text if (text := next(numbers)).isdecimal() else f"{{{text}}}", paths[0])


__all__ = ["summary"]
