"""The one configuration: schema, patterns of names, checks and messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.config.checks import KNOWN_BACKENDS as KNOWN_BACKENDS
    from mxfp4_core.config.checks import PROFILE_NAMES as PROFILE_NAMES
    from mxfp4_core.config.checks import TIES as TIES
    from mxfp4_core.config.environment import config_for_stored as config_for_stored
    from mxfp4_core.config.environment import config_of_environment as config_of_environment
    from mxfp4_core.config.schema import CONFIG_VERSION as CONFIG_VERSION
    from mxfp4_core.config.schema import Mxfp4Config as Mxfp4Config
    from mxfp4_core.config.schema import Override as Override
    from mxfp4_core.config.words import ACTIVATIONS as ACTIVATIONS
    from mxfp4_core.config.words import MACHINE as MACHINE

_HOMES = {
    "ACTIVATIONS": "words",
    "MACHINE": "words",
    "CONFIG_VERSION": "schema",
    "Mxfp4Config": "schema",
    "Override": "schema",
    "KNOWN_BACKENDS": "checks",
    "PROFILE_NAMES": "checks",
    "TIES": "checks",
    "config_for_stored": "environment",
    "config_of_environment": "environment",
}

__all__ = [
    "ACTIVATIONS",
    "CONFIG_VERSION",
    "KNOWN_BACKENDS",
    "MACHINE",
    "PROFILE_NAMES",
    "TIES",
    "Mxfp4Config",
    "Override",
    "config_for_stored",
    "config_of_environment",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
