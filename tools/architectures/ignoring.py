"""A pattern keeps the same weights in whatever vocabulary it is written, by whatever route."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from architectures.rows import Fault
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import Mxfp4Error
from mxfp4_core.jobs import Plan, plan_checkpoint


def kept(source: Path, settings: dict[str, Any], weights: Collection[str]) -> tuple[str, set[str]] | None:
    """Check the spellings of one module of a model, and return one of them with the weights that it keeps.

    Args:
        source: folder in high precision.
        settings: what of a config is needed anyway.
        weights: what is quantised with these settings, by the names of the model.

    Returns:
        None where the model has no module that holds some of the weights and not all.

    Raises:
        Fault: two spellings keep different weights.
    """
    parents = Counter(name.removesuffix(".weight").rpartition(".")[0] for name in weights)
    inside = {
        parent: {name for name in weights if name.startswith(f"{parent}.")} for parent in parents if parent
    }
    parent = max(
        (each for each in inside if len(inside[each]) < len(weights)),
        default="",
        key=lambda p: (parents[p], p),
    )
    if not parent:
        return None
    wanted, last = inside[parent], ""
    view = plan_checkpoint(source, Mxfp4Config.from_dict(settings)).view
    stored = {name: each.parameters for name, each in (view.tensors if view else {}).items()}
    for spelling in dict.fromkeys(_spellings(parent, wanted, stored)):
        asked = {**settings, "ignore": [*settings.get("ignore", ()), spelling]}
        try:
            plan = plan_checkpoint(source, Mxfp4Config.from_dict(asked))
        except Mxfp4Error as error:
            raise Fault("ignore", f"{spelling!r} is refused: {error.what}: {error.seen}") from error
        if (found := {*weights} - _quantised(plan)) != wanted:
            lost, more = sorted(wanted - found)[:2], sorted(found - wanted)[:2]
            raise Fault("ignore", f"{spelling!r} does not keep {lost}, and keeps {more} as well")
        last = spelling
    return last, wanted


def _quantised(plan: Plan) -> set[str]:
    stored = plan.view.tensors if plan.view else {}
    return {name for row in plan.quantized for name in stored[row.name].parameters}


def _spellings(parent: str, wanted: Collection[str], stored: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield names for a module: of the model and of the file, plain, as a wildcard and as an expression."""
    sources = [name for name, parameters in stored.items() if wanted & {*parameters}]
    others = [name for name, parameters in stored.items() if not wanted & {*parameters}]
    columns = zip(*(name.split(".") for name in sources), strict=False)
    there = [first for first, *more in takewhile(lambda column: len({*column}) == 1, columns)]
    prefixes = [parent]
    if there and not any(
        name.split(".")[: len(there)] == there for name in others if name.endswith(".weight")
    ):
        prefixes.append(".".join(there).removesuffix(".weight"))
    for prefix in prefixes:
        yield prefix
        # A path with a wildcard below a linear means what is in it, not itself: it is refused.
        if f"{prefix}.weight" not in sources:
            yield f"{prefix}.*"
        yield rf"re:{re.escape(prefix)}(\..*)?"


__all__ = ["kept"]
