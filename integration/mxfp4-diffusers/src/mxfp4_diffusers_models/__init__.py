"""The model provider of diffusers, a package of its own: a plan of another model imports neither that nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mxfp4_core.naming import Headers, ModelView


class Provider:
    """Describes the models that the installed diffusers has a class for; an entry point of ``mxfp4.models``."""

    name = "diffusers"

    def describe(self, config: Mapping[str, Any], headers: Headers) -> ModelView | None:
        """Say what the weights of a component of a pipeline are.

        Args:
            config: contents of config.json; ``_class_name`` is the class.
            headers: the tensors of the checkpoint, in high precision.

        Returns:
            None where the config names no class of a model of diffusers.

        Raises:
            ModelError: the config does not describe a model, or not the one that the tensors belong to.
        """
        if not isinstance(config.get("_class_name"), str):
            return None
        from mxfp4_diffusers_models.meta import class_of, described

        kind = class_of(config)
        return None if kind is None else described(kind, config, headers)


provider = Provider()
"""The provider itself."""

__all__ = ["Provider", "provider"]
