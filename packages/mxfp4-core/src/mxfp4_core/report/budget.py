"""Which weights to keep in high precision, so that a checkpoint stays within a number of bytes and hurts least.

How much a weight hurts is measured: as the squared error of its values, or as what `mxfp4_core.modules.sensitivities`
found for the output of the model. Those that hurt most for the bytes that keeping them takes are kept first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxfp4_core._text import disk_text
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import ConfigError
from mxfp4_core.jobs.plan import Plan
from mxfp4_core.jobs.rows import Row
from mxfp4_core.naming.vocabulary import module_of, operator_of
from mxfp4_core.report.measure import compare
from mxfp4_core.report.naming import group_of


@dataclass(frozen=True)
class Kept:
    """What a budget buys.

    Attributes:
        config: that of the plan, with patterns that keep the weights.
        names: the weights that are kept, those that hurt most for their bytes first.
        added: bytes that keeping them takes.
        share_left: share of the hurt of all weights that is left.
    """

    config: Mxfp4Config
    names: tuple[str, ...]
    added: int
    share_left: float


def keep_within(plan: Plan, budget: int, hurts: Mapping[str, float]) -> Kept:
    """Choose the weights that are kept in high precision.

    What engines fuse, and the experts of a layer, are kept together or not at all.

    Args:
        plan: with everything quantised that may be.
        budget: most bytes of all tensors of the result.
        hurts: how much each quantised weight hurts, by its name in the checkpoint or in the model.

    Raises:
        ConfigError: the plan takes more than the budget, or a weight is not in ``hurts``.
    """
    if plan.bytes_after > budget:
        raise ConfigError(
            "the budget is too small",
            seen=f"{disk_text(budget)}, and {disk_text(plan.bytes_after)} with every weight quantised",
            rule="a budget is for weights that are kept beside those that are kept anyway",
            fix=f"allow at least {disk_text(plan.bytes_after)}, or a larger part of {disk_text(plan.bytes_before)}",
        )
    groups: dict[str, list[Row]] = {}
    for row in plan.quantized:
        groups.setdefault(operator_of(module_of(row.name)), []).append(row)
    hurt: dict[str, float] = {}
    for whole, rows in groups.items():
        # A number may be that of a whole stack, or of all experts of a layer, and then counts once.
        hurt[whole] = sum(hurts[key] for key in dict.fromkeys(_key(row, plan, hurts) for row in rows))
    cost = {whole: sum(row.bytes_before - row.bytes_after for row in rows) for whole, rows in groups.items()}
    ordered = sorted(
        (whole for whole in groups if cost[whole] > 0), key=lambda each: -hurt[each] / cost[each]
    )
    kept, room = dict[str, None](), budget - plan.bytes_after
    for whole in ordered:
        if cost[whole] <= room and hurt[whole] > 0:
            kept[whole] = None
            room -= cost[whole]
    names = tuple(row.name for whole in kept for row in groups[whole])
    ignore = [*plan.config.ignore, *dict.fromkeys(f"={module_of(name)}" for name in names)]
    left, total = sum(hurt[whole] for whole in groups if whole not in kept), sum(hurt.values())
    config = plan.config.model_copy(update={"ignore": ignore})
    added = sum(cost[whole] for whole in kept)
    return Kept(config, names, added, left / total if total else 0.0)


def errors_of_weights(source: str | Path, config: Mxfp4Config, models: str = "auto") -> dict[str, float]:
    """Return the squared error of each weight that a config quantises, by name; every weight is read.

    Raises:
        ConfigError: a format whose errors are not measured here.
        CheckpointError, PatternError: as `mxfp4_core.report.compare`.
    """
    if config.formats() != ("mxfp4",):
        raise ConfigError(
            "the error of the weights cannot be measured",
            seen=f"format {', '.join(config.formats())}",
            rule="without --hurts, what quantising does to the values is measured, for mxfp4 alone",
            fix="measure with mxfp4_core.modules.sensitivities, and pass --hurts FILE",
        )
    variant = config.resolved_profile()
    report = compare(source, [variant], config=config, models=models)
    return {
        layer.name: layer.results[variant].noise
        for layer in report.quantised_layers
        if variant in layer.results
    }


def read_hurts(path: Path) -> dict[str, float]:
    """Read what `mxfp4_core.modules.sensitivities` returned from a JSON file.

    Raises:
        ConfigError: it cannot be read, or is no object of numbers from zero on.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(found, dict) or not found:
        raise _unreadable(path, f"{type(found).__name__}")
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise _unreadable(path, f"{name}: {value!r}"[:200])
    return {name: float(value) for name, value in found.items()}


def _unreadable(path: Path, seen: str) -> ConfigError:
    return ConfigError(
        f"{path} does not say how much weights hurt",
        seen=seen,
        rule="it is a JSON object: name of a weight to a number from zero on",
        fix="write json.dumps(mxfp4_core.modules.sensitivities(model, run)) into it",
    )


def _key(row: Row, plan: Plan, hurts: Mapping[str, float]) -> str:
    """Return the name under which a weight has its number."""
    stored = plan.view.tensors.get(row.name) if plan.view else None
    names = [row.name, group_of(row.name)[0], module_of(row.name), *(stored.parameters if stored else ())]
    if (found := next((name for name in names if name in hurts), None)) is None:
        raise ConfigError(
            f"it is not known how much {row.name} hurts",
            seen=f"{len(hurts)} other names",
            rule="every weight that is quantised has a number",
            fix="measure with the config of this plan",
        )
    return found


__all__ = ["Kept", "errors_of_weights", "keep_within", "read_hurts"]
