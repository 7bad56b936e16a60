"""What the load of a quantised checkpoint will do, decided from its headers before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NoReturn

from mxfp4_core.checkpoint import TensorInfo
from mxfp4_core.dialects.native import NATIVE
from mxfp4_core.errors import CheckpointError, ConfigError, LoadError
from mxfp4_core.modules import ModelPlan, find_sites
from mxfp4_core.modules.decisions import decide, plain_reasons, why_kept
from mxfp4_transformers import compat
from mxfp4_transformers.config import Mxfp4CoreConfig

SCALE = "_scale"


def plan_reload(model: Any, config: Mxfp4CoreConfig, headers: Mapping[str, TensorInfo]) -> ModelPlan:
    """Find what is MXFP4 in a checkpoint of ours, and check that it is complete.

    Raises:
        CheckpointError: the checkpoint is not in safetensors files.
        LoadError: scales, codes or experts are missing.
        DialectError: shapes or dtypes are not those of our dialect.
        ConfigError: the config and the tensors contradict each other.
    """
    if not headers:
        raise CheckpointError(
            "the quantised weights cannot be read",
            seen="no safetensors files",
            rule="MXFP4 checkpoints are safetensors files next to a config.json",
            fix="pass the folder that save_pretrained or `mxfp4 quantize` wrote",
        )
    _check_pairs(headers)
    tensors = {name: (header.dtype, header.shape) for name, header in headers.items()}
    contents = NATIVE.read(config.to_dict(), tensors)
    codes = [entry.codes for entry in contents.entries.values()]
    packed: dict[tuple[str, ...], list[str]] = {}
    for source, targets in compat.destinations(codes, compat.default_conversions(model), model).items():
        packed.setdefault(targets, []).append(source)
    quantised = {target for targets in packed for target in targets}
    sites, view = {site.path: site for site in find_sites(model)}, compat.view(model)
    decisions = decide(model, config.core, view, sites.values(), check=False)
    plan = ModelPlan(reasons=plain_reasons(model, decisions), profile=contents.profile)
    for site in sites.values():
        mine = {site.name(name): decisions[site.name(name)] for name in site.weights}
        stored = [name for name in mine if name in quantised]
        if not stored:
            reason = why_kept(view, site, mine)
            if not reason and not site.refusal:
                _contradiction(
                    f"{site.path} is in high precision", f"{next(iter(mine))} is quantised: {reason}"
                )
            plan.reasons[site.path] = reason or site.refusal
            continue
        if site.refusal:
            _contradiction(f"{site.path} is MXFP4", f"it cannot be: {site.refusal}")
        if len(stored) < len(mine):
            _contradiction(
                f"only {', '.join(stored)} are MXFP4", f"all weights of {site.path} are quantised alike"
            )
        plan.add(
            site,
            {name: found.profile or contents.profile for name, found in mine.items()},
            "in the checkpoint",
        )
    _check_places(plan, packed, headers)
    return plan


def _check_pairs(headers: Mapping[str, TensorInfo]) -> None:
    codes = {name for name, header in headers.items() if header.dtype == "U8" and not name.endswith(SCALE)}
    lost = sorted(f"{name}{SCALE}" for name in codes if f"{name}{SCALE}" not in headers)
    lost += sorted(
        name.removesuffix(SCALE)
        for name, header in headers.items()
        if header.dtype == "U8" and name.endswith(SCALE) and name.removesuffix(SCALE) not in headers
    )
    if lost:
        raise LoadError(
            "the checkpoint is incomplete",
            seen=f"missing: {', '.join(lost[:5])}" + (f" and {len(lost) - 5} more" if len(lost) > 5 else ""),
            rule="every tensor of codes has its scales, and every tensor of scales its codes",
            fix="write or download the checkpoint again",
        )


def _check_places(
    plan: ModelPlan, packed: Mapping[tuple[str, ...], list[str]], headers: Mapping[str, TensorInfo]
) -> None:
    """Check that the codes in the checkpoint fill the weights of the model, each group of them by itself."""
    for targets, names in packed.items():
        lost = [target for target in targets if target not in plan.weights]
        if lost:
            _contradiction(
                f"{names[0]} is MXFP4",
                f"MXFP4 weights belong to linears and stacks of experts, which {lost[0]} is not",
                f"quantise again with ignore=[{names[0].removesuffix('.weight')!r}]",
            )
        shapes = [plan.weights[target].shapes["codes"] for target in targets]
        have, want = sum(prod(headers[name].shape) for name in names), sum(map(prod, shapes))
        first = headers[names[0]].shape
        alone = len(names) == len(targets) == 1
        if have != want or (alone and first != shapes[0]):
            raise LoadError(
                f"{', '.join(targets)} cannot be filled",
                seen=f"{len(names)} tensors with {have} bytes of codes; {names[0]} is {list(first)}",
                rule=f"the model needs codes of {' and '.join(str(list(shape)) for shape in shapes)} there",
                fix="complete the checkpoint, or use the config.json that belongs to it",
            )


def _contradiction(seen: str, rule: str, fix: str = "write the checkpoint again") -> NoReturn:
    raise ConfigError("the config contradicts the checkpoint", seen=seen, rule=rule, fix=fix)
