"""What an engine calls the pieces that it loads, read from the arguments of its loaders."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

# What the engines' loaders call their arguments, for wrappers around them that take *args.
_LOOSE_NAMES = {1: ("shard_id",), 3: ("weight_name", "shard_id", "expert_id")}


class Key(NamedTuple):
    """What the engine calls the piece that it loads: its own shard and expert ids, and the checkpoint's name."""

    shard: str | int | tuple[int, ...] | None = None
    expert: int | None = None
    source: str | None = None

    def __str__(self) -> str:
        """Return the ids in words, or "the weight" when the engine gave none."""
        words = [f"shard {self.shard}"] if self.shard is not None else []
        words += [f"expert {self.expert}"] if self.expert is not None else []
        return ", ".join(words) or "the weight"


THE_WEIGHT = Key()
"""What a piece is called that an engine gave no ids."""


def key_reader(weight_loader: Callable[..., Any]) -> Callable[[tuple[Any, ...], dict[str, Any]], Key]:
    """Return a function that reads shard, expert and source name from what follows param and loaded_weight."""
    try:
        parameters = list(inspect.signature(weight_loader).parameters.values())[2:]
    except (TypeError, ValueError):  # a callable without a signature, such as a compiled function
        parameters = []
    own_names = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
        names = own_names if len(args) <= len(own_names) else _LOOSE_NAMES.get(len(args), ())
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        shard = given.get("shard_id", given.get("loaded_shard_id"))
        return Key(
            tuple(shard) if isinstance(shard, list) else shard,
            given.get("expert_id"),
            given.get("weight_name"),
        )

    return read


__all__ = ["THE_WEIGHT", "Key", "key_reader"]
