"""From the names of a model to decisions: vocabulary, matching, what is kept, exclude lists, facts about a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.naming.braces import collapse as collapse
    from mxfp4_core.naming.decision import Decision as Decision
    from mxfp4_core.naming.exclude_lists import foreign as foreign
    from mxfp4_core.naming.facts import ModelFacts as ModelFacts
    from mxfp4_core.naming.resolver import Resolver as Resolver
    from mxfp4_core.naming.vocabulary import DEFAULT_FUSED as DEFAULT_FUSED
    from mxfp4_core.naming.vocabulary import transposed as transposed

_HOMES = {
    "DEFAULT_FUSED": "vocabulary",
    "transposed": "vocabulary",
    "Decision": "decision",
    "Resolver": "resolver",
    "foreign": "exclude_lists",
    "ModelFacts": "facts",
    "collapse": "braces",
}

__all__ = [
    "DEFAULT_FUSED",
    "Decision",
    "ModelFacts",
    "Resolver",
    "collapse",
    "foreign",
    "transposed",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
