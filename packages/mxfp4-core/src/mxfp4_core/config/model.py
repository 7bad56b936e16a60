"""What the parts of a config have in common: strict data, and errors that say what to do."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from mxfp4_core.config.messages import explain
from mxfp4_core.errors import ConfigError

CONFIG_VERSION: Final = 1
"""Version of this schema. A file with a higher one is refused: its keys could mean something unknown here."""


class ConfigModel(BaseModel):
    """A part of a config: frozen, no unknown keys, and what is wrong with it said by our own errors.

    Attributes:
        TITLE: what messages call it.
    """

    TITLE: ClassVar[str]

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _as_config_error(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # Raised from a wrap validator, so that every way of building the model reports in our words. The version
        # goes first: under another version, complaints about keys would only mislead.
        version = data.get("version") if isinstance(data, dict) and "version" in cls.model_fields else None
        if type(version) is int and version != CONFIG_VERSION:
            raise ConfigError(
                "this config has another version",
                seen=f"version = {version}",
                rule=f"this release reads version {CONFIG_VERSION}",
                fix="upgrade mxfp4-core" if version > CONFIG_VERSION else f"write version = {CONFIG_VERSION}",
            )
        try:
            return handler(data)
        except ValidationError as error:
            raise explain(error, data, cls.TITLE, list(cls.model_fields)) from None


__all__ = ["CONFIG_VERSION", "ConfigModel"]
