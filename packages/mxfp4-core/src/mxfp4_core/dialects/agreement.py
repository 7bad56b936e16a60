"""Whether the settings that a checkpoint stores agree with what it holds: what they keep is not quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mxfp4_core.config.patterns import PatternSet
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Entry
from mxfp4_core.dialects.pairs import contradiction
from mxfp4_core.naming.providers import describe
from mxfp4_core.naming.resolver import Resolver

Headers = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of tensors by name."""


def check_names(
    dialect: str, settings: Mapping[str, Any], model: Mapping[str, Any], entries: Mapping[str, Entry]
) -> None:
    """Refuse settings whose patterns hit the name of a weight that is quantised, and keep it.

    What the defaults keep is not held against a checkpoint: they are those of whoever wrote it.

    Args:
        dialect: name for messages.
        settings: what `Mxfp4Config.from_dict` takes.
        model: ``config.json``.
        entries: the quantised weights.

    Raises:
        DialectError: names the first weight that they keep.
        ConfigError, PatternError: settings that are not valid.
    """
    if config := _keeping(settings):
        _check(dialect, Resolver.for_model(config, model), entries, targets=False)


def check_model(
    dialect: str,
    settings: Mapping[str, Any],
    model: Mapping[str, Any],
    entries: Mapping[str, Entry],
    rest: Headers,
) -> None:
    """Refuse settings that keep a quantised weight by the name that the model has for it, or name other weights only.

    A model provider is asked, if one knows the model, and only where a pattern hits no name of the file or a weight is
    hit by no target: then patterns may be written in the names of the modules.

    Args:
        dialect: as all that follow, as for `check_names`.
        settings: see there.
        model: see there.
        entries: see there.
        rest: every other tensor.

    Raises:
        DialectError, ConfigError, PatternError: as `check_names`.
        ModelError: two providers claim the model.
    """
    if (config := _keeping(settings)) is None:
        return
    patterns = PatternSet(
        [*config.ignore, *config.targets, *(each.pattern for each in config.overrides if each.keep)]
    )
    missing = {pattern.text for pattern in patterns.patterns}
    targets, untargeted = frozenset(config.targets), False
    for name in (*entries, *rest):
        hits = patterns.find(name)
        missing.difference_update(hits)
        untargeted = untargeted or bool(targets and name in entries and targets.isdisjoint(hits))
    if not (missing or untargeted):
        return
    headers = {name: ("U8", entry.shape) for name, entry in entries.items()} | dict(rest)
    if (view := describe(model, headers).view) is not None:
        _check(dialect, Resolver.for_model(config, model, view=view), entries, targets=True)


def _keeping(settings: Mapping[str, Any]) -> Mxfp4Config | None:
    """Return the config, or None where no pattern of it keeps anything."""
    if not any(settings.get(key) for key in ("ignore", "overrides", "targets")):
        return None
    config = Mxfp4Config.from_dict(dict(settings))
    keeps = config.ignore or config.targets or any(override.keep for override in config.overrides)
    return config if keeps else None


def _check(dialect: str, resolver: Resolver, entries: Mapping[str, Entry], *, targets: bool) -> None:
    for weight, entry in entries.items():
        decision = resolver.decide(weight, entry.shape)
        if decision.kept_by_config if targets else decision.kept_by_pattern:
            contradiction(
                dialect,
                f"{weight!r} is quantised, and quantization_config keeps it: {decision.reason}",
                "a weight that ignore, targets or overrides keep is in high precision",
            )


__all__ = ["check_model", "check_names"]
