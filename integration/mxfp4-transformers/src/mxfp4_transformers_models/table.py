"""What a table says about a model: the view that transformers would give, or None where the table cannot be certain.

The table of a release has a row for each class. A row holds facts by the name of a parameter in which the numbers of
layers and experts are ``*``, the names that a file may have for it, what each size follows from, and the settings of
config.json that the facts depend on. The answer is None, and the library is asked, as soon as anything is not as the
row has it: a setting, a name, a size or a dtype.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mxfp4_core.naming import Headers, ModelView
from mxfp4_transformers_models.row import Row
from mxfp4_transformers_models.settings import UncertainError

_TABLES: Final = Path(__file__).with_name("known")


def releases() -> Iterator[str]:
    """Yield the releases of transformers that there is a table for."""
    yield from sorted(path.stem for path in _TABLES.glob("*.json"))


def rows(release: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the rows of a release, by name of the class; empty where there is no table for it."""
    return _table(release).get("rows", {})


def is_unknown(release: str, config: Mapping[str, Any]) -> bool:
    """Say whether transformers has no class for a config for certain: then nobody need ask.

    Args:
        release: version of transformers.
        config: contents of config.json.
    """
    model_type, named = config.get("model_type"), config.get("architectures")
    if not isinstance(model_type, str) or not isinstance(named, list) or not named:
        return True
    return not isinstance(named[0], str) or model_type not in _table(release).get("types", [model_type])


def _table(release: str) -> Mapping[str, Any]:
    return _read(_TABLES / f"{release}.json") if release in releases() else {}


@functools.cache
def _read(path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def describe(release: str, config: Mapping[str, Any], headers: Headers) -> ModelView | None:
    """Return what transformers says about a model, or None where the table does not know for certain.

    Args:
        release: version of transformers.
        config: contents of config.json.
        headers: the tensors of the checkpoint, in high precision.
    """
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    data = rows(release).get(name) if isinstance(name, str) else None
    if data is None or config.get("model_type") != data["model_type"]:
        return None
    try:
        parameters, tensors = Row(data, config).read(headers)
    except UncertainError:
        return None
    renames = [(model, file) for model, file in data["renames"]]
    return ModelView(f"transformers {release}", str(name), parameters, tensors, renames, config)


__all__ = ["describe", "releases", "rows"]
