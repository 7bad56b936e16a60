"""The model provider of transformers: by its table at once where that is proven, by transformers itself elsewhere.

A package of its own beside ``mxfp4_transformers``: importing that one imports torch and transformers, and a plan of a
model that the table knows needs neither. Table and library say the same: each table is made of what
`mxfp4_transformers.provider` says under one release of transformers, is used with that release alone, and is held
against it by tests. What a table does not know for certain, the library is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mxfp4_core.naming import Headers, ModelView
from mxfp4_transformers_models import table


class Provider:
    """Describes the models that the installed transformers has a class for; an entry point of ``mxfp4.models``."""

    name = "transformers"

    def describe(self, config: Mapping[str, Any], headers: Headers) -> ModelView | None:
        """Say what the weights of a model are; see `mxfp4_transformers.provider`.

        Args:
            config: contents of config.json; ``model_type`` and ``architectures`` choose the class.
            headers: the tensors of the checkpoint, in high precision.

        Returns:
            None where transformers has no such class.

        Raises:
            ModelError: the config does not describe a model, or not the one that the tensors belong to.
        """
        try:
            release = version("transformers")
        except PackageNotFoundError:  # the library itself says so, in an error that names it
            release = ""
        if table.is_unknown(release, config):
            return None
        if (known := table.describe(release, config, headers)) is not None:
            return known
        from mxfp4_transformers import provider as library

        return library.describe(config, headers)


provider = Provider()
"""The provider itself."""

__all__ = ["Provider", "provider"]
