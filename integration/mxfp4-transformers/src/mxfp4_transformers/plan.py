"""What a load will do, decided from names and shapes before a weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, NoReturn

from torch import nn

from mxfp4_core.arithmetic import BLOCK
from mxfp4_core.checkpoint.header import TensorInfo
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.dialects.native import NATIVE
from mxfp4_core.errors import CheckpointError, ConfigError, LoadError, ShapeError
from mxfp4_core.naming import Resolver
from mxfp4_core.naming.resolver import Decision
from mxfp4_transformers import compat
from mxfp4_transformers.config import Mxfp4CoreConfig
from mxfp4_transformers.sites import Site, find
from mxfp4_transformers.weights import SCALE, Weight


@dataclass
class Plan:
    """Which modules get MXFP4 weights, which do not, and why.

    Attributes:
        sites: the modules to replace.
        weights: their weights, by full name.
        reasons: why each linear, stack of experts or other parameter is what it will be, by name.
        profile: the profile of the weights that have none of their own; empty if a checkpoint does not say.
    """

    sites: list[Site] = field(default_factory=list[Site])
    weights: dict[str, Weight] = field(default_factory=dict[str, Weight])
    reasons: dict[str, str] = field(default_factory=dict[str, str])
    profile: str = ""

    def add(self, site: Site, profiles: Mapping[str, str], reason: str) -> None:
        """Plan to replace a module."""
        self.sites.append(site)
        self.reasons[site.path] = reason
        for name, shape in site.weights.items():
            full = site.name(name)
            self.weights[full] = Weight(full, shape, site.transposed, profiles[full])

    def reason_of(self, path: str, parameters: Iterable[str]) -> str:
        """Return why a module is what it is, from its own entry or from one of its parameters'."""
        own = [self.reasons.get(f"{path}.{name}", "") for name in parameters]
        return self.reasons.get(path) or next(filter(None, own), "")

    def profile_of(self, site: Site) -> str:
        """Return the profile of a module's weights; of several, joined by commas."""
        return ", ".join(dict.fromkeys(self.weights[site.name(name)].profile for name in site.weights))


def plan_load(model: Any, config: CoreConfig) -> Plan:
    """Decide what becomes MXFP4 while a model loads from high precision.

    Raises:
        PatternError: a pattern of the config matches nothing, or splits what belongs together.
        ConfigError: a module is to be quantised that cannot be.
        ShapeError: K of a weight is no multiple of 32, and the config does not pad.
    """
    found = {site.path: site for site in find(model)}
    decisions = _decide(model, config, found.values())
    plan = Plan(reasons=_reasons(model, decisions), profile=config.resolved_profile())
    for site in found.values():
        mine = {site.name(name): decisions[site.name(name)] for name in site.weights}
        reason = _stays(model, site, mine)
        if reason:
            plan.reasons[site.path] = reason
            continue
        if site.refusal:
            _cannot(site, site.refusal)
        for name, shape in site.weights.items():
            if shape[-1] % BLOCK and config.tail == "refuse":
                raise ShapeError(
                    f"{site.name(name)} cannot be quantised",
                    seen=f"k = {shape[-1]} in shape {list(shape)}",
                    rule=f"blocks of {BLOCK} run along k",
                    fix=f"pass tail='pad' to pad with zeros, which is exact, or ignore=[{site.path!r}]",
                )
        # A report groups by reason, and what is quantised because everything is needs none.
        reason = next((found.reason for found in mine.values() if found.pattern), "")
        plan.add(site, {name: found.profile or "" for name, found in mine.items()}, reason)
    _check_rest(model, plan, decisions, found.values())
    return plan


def plan_reload(model: Any, config: Mxfp4CoreConfig, headers: Mapping[str, TensorInfo]) -> Plan:
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
    sites = {site.path: site for site in find(model)}
    decisions = _decide(model, config.core, sites.values(), check=False)
    plan = Plan(reasons=_reasons(model, decisions), profile=contents.profile)
    for site in sites.values():
        mine = {site.name(name): decisions[site.name(name)] for name in site.weights}
        stored = [name for name in mine if name in quantised]
        if not stored:
            reason = _stays(model, site, mine)
            if not reason and not site.refusal:
                _contradiction(
                    f"{site.path} is in high precision", f"{next(iter(mine))} is quantised: {reason}"
                )
            plan.reasons[site.path] = reason or site.refusal
            continue
        if site.refusal:
            _cannot(site, site.refusal)
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
    plan: Plan, packed: Mapping[tuple[str, ...], list[str]], headers: Mapping[str, TensorInfo]
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
        shapes = [plan.weights[target].codes_shape for target in targets]
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


def _decide(
    model: Any, config: CoreConfig, found: Iterable[Site], *, check: bool = True
) -> dict[str, Decision]:
    """Return the decision about every parameter, by its name in the model."""
    logical = {site.name(name): shape for site in found for name, shape in site.weights.items()}
    shapes = {name: logical.get(name, tuple(p.shape)) for name, p in model.named_parameters()}
    renames = compat.renames(compat.default_conversions(model))
    resolver = Resolver.for_model(config, model.config.to_dict(), renames=renames)
    if check:
        return dict(zip(shapes, resolver.decide_all(shapes.items()), strict=True))
    return {name: resolver.decide(name, shape) for name, shape in shapes.items()}


def _check_rest(model: Any, plan: Plan, decisions: Mapping[str, Decision], found: Iterable[Site]) -> None:
    """Refuse weights that are to be quantised and that no module here can hold, and a load that does nothing."""
    known = {site.name(name) for site in found for name in site.weights}
    lost: dict[str, str] = {}
    for name, decision in decisions.items():
        if not decision.quantize or name in known:
            continue
        path = name.rpartition(".")[0]
        if isinstance(model.get_submodule(path), nn.Embedding):
            plan.reasons[name] = "an embedding is looked up, not multiplied"
        else:
            lost[name] = type(model.get_submodule(path)).__name__
    if lost:
        kinds = ", ".join(f"{name} of {kind}" for name, kind in list(lost.items())[:5])
        raise ConfigError(
            f"{len(lost)} weights are to be quantised and cannot be",
            seen=kinds + (f" and {len(lost) - 5} more" if len(lost) > 5 else ""),
            rule="weights of torch.nn.Linear and of stacked experts can be MXFP4 here; nothing else stays in high "
            "precision unless the config says so",
            fix=f"say so: ignore=[{', '.join(repr(part) for part in dict.fromkeys(map(_last, lost)))}]",
        )
    if not plan.sites:
        raise ConfigError(
            "nothing is left to quantise",
            seen=f"{len(decisions)} parameters, all kept",
            rule="a load with a quantization_config quantises at least one weight",
            fix="quantise more, or load without quantization_config",
        )


def _last(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _reasons(model: Any, decisions: Mapping[str, Decision]) -> dict[str, str]:
    # Norms and biases are vectors under many names: one reason keeps them together in a report.
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    return {
        name: "a vector has no rows to quantise" if name in vectors else decision.reason
        for name, decision in decisions.items()
    }


def _stays(model: Any, site: Site, decisions: Mapping[str, Decision]) -> str:
    """Return why a module stays in high precision, empty where it is to be quantised.

    Raises:
        ConfigError: the config quantises one weight of the module and keeps another.
    """
    if set(decisions) & (set(model.all_tied_weights_keys) | set(model.all_tied_weights_keys.values())):
        if asked := [
            decision.pattern for decision in decisions.values() if decision.quantize and decision.pattern
        ]:
            _cannot(site, f"{asked[0]!r} asks for it, and it shares its weight with another module")
        return "shares its weight with another module"
    kept = [decision for decision in decisions.values() if not decision.quantize]
    if kept and len(kept) < len(decisions):
        _cannot(site, f"the config keeps {kept[0].name} ({kept[0].reason}) and quantises the other")
    if kept:
        return kept[0].reason
    patterns = {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    patterns |= {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    if any(re.search(rf"(^|\.){pattern}($|\.)", site.path) for pattern in patterns):
        return "the model keeps it in float32"
    return ""


def _cannot(site: Site, why: str) -> NoReturn:
    raise ConfigError(
        f"{site.path} is to be quantised and cannot be",
        seen=why,
        rule="nothing stays in high precision unless the config says so",
        fix=f"say so: ignore=[{site.path!r}]",
    )


def _contradiction(seen: str, rule: str, fix: str = "write the checkpoint again") -> NoReturn:
    raise ConfigError("the config contradicts the checkpoint", seen=seen, rule=rule, fix=fix)
