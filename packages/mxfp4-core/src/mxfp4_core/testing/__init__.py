"""Everything a backend author needs to be sure: named blocks, strategies, an emulated device, the conformance suite.

A backend's whole conformance file is::

    from mxfp4_core.testing import BackendConformance


    class TestMine(BackendConformance):
        backend_name = "mine"

Nothing is imported until it is used, because pytest loads the plug-in of this package at every start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mxfp4_core.testing.conformance import BackendConformance
    from mxfp4_core.testing.emulated import EmulatedBackend
    from mxfp4_core.testing.engine_kit import (
        PROMPTS,
        ExpectedTokens,
        check_parts,
        expected_parts,
        held_by,
    )
    from mxfp4_core.testing.suite_dialect import DialectConformance
    from mxfp4_core.testing.suite_format import FormatConformance
    from mxfp4_core.testing.suite_models import ModelExample, ModelProviderConformance
    from mxfp4_core.testing.suite_profile import ProfileConformance

_HOME = {
    "BackendConformance": "conformance",
    "DialectConformance": "suite_dialect",
    "EmulatedBackend": "emulated",
    "ExpectedTokens": "engine_kit",
    "FormatConformance": "suite_format",
    "ModelExample": "suite_models",
    "ModelProviderConformance": "suite_models",
    "PROMPTS": "engine_kit",
    "ProfileConformance": "suite_profile",
    "check_parts": "engine_kit",
    "expected_parts": "engine_kit",
    "held_by": "engine_kit",
}

__all__ = [
    "PROMPTS",
    "BackendConformance",
    "DialectConformance",
    "EmulatedBackend",
    "ExpectedTokens",
    "FormatConformance",
    "ModelExample",
    "ModelProviderConformance",
    "ProfileConformance",
    "check_parts",
    "expected_parts",
    "held_by",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mxfp4_core.testing' has no attribute {name!r}")
    return getattr(import_module(f"mxfp4_core.testing.{_HOME[name]}"), name)
