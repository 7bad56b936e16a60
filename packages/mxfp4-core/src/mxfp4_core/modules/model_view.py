"""What a plan has to know of a model that its modules do not say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.naming.resolver import Resolver


@dataclass(frozen=True)
class ModelView:
    """Facts about a model, from the library that made it.

    Attributes:
        config: contents of its config.json; may be empty.
        renames: pairs (name in the model, name in the checkpoint) of component runs that mean the same.
        tied: names of parameters that share memory with another one.
        pinned: why a module has to stay in high precision, by its name.
    """

    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    renames: Sequence[tuple[str, str]] = ()
    tied: Collection[str] = frozenset()
    pinned: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Look at a model in memory: parameters that are one object are tied, a ``config`` is read if it has one."""
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        config = getattr(model, "config", None)
        to_dict = getattr(config, "to_dict", None)
        read = to_dict() if callable(to_dict) else config if isinstance(config, Mapping) else {}
        return cls(dict(read), tied={name for group in names.values() if len(group) > 1 for name in group})

    def resolver(self, config: Mxfp4Config) -> Resolver:
        """Return who decides about the names of this model under a config."""
        return Resolver.for_model(config, self.config, renames=self.renames)


__all__ = ["ModelView"]
