"""Few layers instead of many, so chosen that each kind of layer stays."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Final

COUNT: Final = re.compile(
    r"(?!num_(nextn|kv_shared|lstm|adapter|residual|feat_extract|conv|dense|global|timestamp).*)"
    r"(.*_)?(num_hidden_layers|num_layers|n_layers?|layers|depth|num_blocks|num_hidden_layers_\w+)"
)
_INDICES: Final = re.compile(r".*(_layers|_indexes|_idxs|_indices|_index|_layer_ids)")
_LEAST, _MOST_KINDS = 2, 4


def shorten(config: dict[str, Any]) -> None:
    """Reduce the number of layers of one section, and all lists that have one entry for each layer, in place."""
    counts = {key: value for key, value in config.items() if _is_count(key, value)}
    main = next(
        (key for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") if key in counts), None
    )
    kept: list[int] = []
    if main is not None:
        kept = _chosen(config, counts[main])
        _reduce(config, counts[main], kept)
    for key, value in counts.items():
        config[key] = len(kept) if main is not None and value == counts[main] else min(value, _LEAST)


def _is_count(key: str, value: Any) -> bool:
    return type(value) is int and value > 0 and COUNT.fullmatch(key) is not None


def _chosen(config: dict[str, Any], layers: int) -> list[int]:
    """Return the layers that are kept: the first ones that show every kind that any of the lists knows."""
    rows = [value for value in config.values() if _per_layer(value, layers)]
    rows += [
        [number in value for number in range(layers)]
        for key, value in config.items()
        if _is_indices(key, value, layers)
    ]
    if isinstance(config.get("per_layer_config"), dict):
        told = _by_layer(config["per_layer_config"])
        rows.append([told.get(number) for number in range(layers)])
    rows = [row for row in rows if len({str(each) for each in row}) <= _MOST_KINDS]
    seen: set[tuple[int, str]] = set()
    kept: list[int] = []
    for number in range(layers):
        new = {(index, str(row[number])) for index, row in enumerate(rows)} - seen
        if new or len(kept) < _LEAST:
            kept.append(number)
            seen |= new
    return kept


def _reduce(config: dict[str, Any], layers: int, kept: list[int]) -> None:
    for key, value in config.items():
        if _is_indices(key, value, layers):
            config[key] = [index for index, number in enumerate(kept) if number in value]
        elif _per_layer(value, layers):
            config[key] = [value[number] for number in kept]
        elif key == "per_layer_config" and isinstance(value, dict):
            told = _by_layer(value)
            config[key] = {str(index): told[number] for index, number in enumerate(kept) if number in told}


def _by_layer(config: dict[Any, Any]) -> dict[int, Any]:
    return {int(number): told for number, told in config.items()}


def _per_layer(value: Any, layers: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == layers > 4


def _is_indices(key: str, value: Any, layers: int) -> bool:
    if not isinstance(value, (list, tuple)) or not value or not all(type(each) is int for each in value):
        return False
    rising = all(one < other for one, other in pairwise(value))
    return rising and _INDICES.fullmatch(key) is not None and value[0] >= 0 and value[-1] < layers


__all__ = ["shorten"]
