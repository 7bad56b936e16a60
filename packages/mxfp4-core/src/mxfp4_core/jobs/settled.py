"""Which config and which profile a checkpoint has that is quantised already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mxfp4_core.checkpoint.manifest import Manifest, read_manifest
from mxfp4_core.checkpoint.places import is_folder
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.config.known import NATIVE_NAME
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Contents, Dialect, Entry
from mxfp4_core.dialects.beside import Narrow
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.naming.resolver import Resolver


def settings_of(
    checkpoint: Checkpoint, dialect: Dialect | None, contents: Contents
) -> tuple[Mxfp4Config, str]:
    """Return the config that describes a quantised checkpoint, and the profile of its codes ("" if unknown).

    The manifest says both, if it belongs to these files. Otherwise a dialect that stores the whole config says it; for
    others the config is made so that it decides about every name as the file does.

    Raises:
        ConfigError: settings in the file that are not valid.
    """
    if dialect is None:
        return _derived_config(checkpoint, NATIVE_NAME, contents), contents.profile
    manifest = read_manifest(checkpoint.path) if is_folder(checkpoint.path) else None
    if manifest is not None and manifest.dialect == dialect.name and _describes(manifest, checkpoint):
        left = () if contents.says_activation else ("activation",)
        said = {key: value for key, value in manifest.config.items() if key not in left}
        return Mxfp4Config.from_dict(said), manifest.profile
    settings = dialect.settings(checkpoint.config.get("quantization_config") or {})
    if settings is not None:
        return Mxfp4Config.from_dict(settings), contents.profile
    return _derived_config(checkpoint, dialect.name, contents), contents.profile


def with_profiles(
    entries: Mapping[str, Entry], config: Mxfp4Config, model: Mapping[str, Any]
) -> dict[str, Entry]:
    """Return weights that are not in the format of the config with the profiles that its overrides give them.

    Args:
        entries: the quantised weights, by name.
        config: from `settings_of`.
        model: contents of config.json.
    """
    if len(config.formats()) == 1:
        return dict(entries)
    resolver, found = Resolver.for_model(config, model, fused={}, stored=True), dict(entries)
    for weight, entry in entries.items():
        decision = resolver.decide(weight, entry.shape)
        if decision.quantize and decision.format == entry.format != config.format and not entry.profile:
            found[weight] = replace(entry, profile=decision.profile or "")
    return found


def _describes(manifest: Manifest, checkpoint: Checkpoint) -> bool:
    def facts(row: Mapping[str, Any]) -> tuple[object, ...]:
        return row.get("file"), row.get("dtype"), tuple(row.get("shape") or ())

    wanted = {name: facts(row) for name, row in manifest.tensors.items()}
    return wanted == {n: (info.file.name, info.dtype, info.shape) for n, info in checkpoint.tensors.items()}


def _derived_config(checkpoint: Checkpoint, dialect: str, contents: Contents) -> Mxfp4Config:
    settings: dict[str, Any] = {"activation": contents.activation, "dialect": dialect}
    if contents.profile:
        settings["profile"] = contents.profile
    plain = Mxfp4Config.from_dict(settings)
    resolver = Resolver.for_model(plain, checkpoint.config, fused={}, stored=True)
    others: dict[str, Recipe | Narrow] = {**contents.tensors, **contents.beside}
    ignore = [
        f"={name.removesuffix('.weight')}"
        for name, recipe in others.items()
        if resolver.decide(name, recipe.shape).quantize
    ]
    forced = [
        {"pattern": f"={weight.removesuffix('.weight')}", "keep": False}
        for weight, entry in contents.entries.items()
        if not resolver.decide(weight, entry.shape).quantize
    ]
    return Mxfp4Config.from_dict({**settings, "ignore": ignore, "overrides": forced})


__all__ = ["settings_of", "with_profiles"]
