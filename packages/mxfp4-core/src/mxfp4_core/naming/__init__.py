"""From the names of a model to decisions: vocabulary, matching, what is kept, exclude lists, facts about a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.naming.braces import collapse as collapse
    from mxfp4_core.naming.decision import Decision as Decision
    from mxfp4_core.naming.exclude_lists import exclude_patterns as exclude_patterns
    from mxfp4_core.naming.facts import ModelFacts as ModelFacts
    from mxfp4_core.naming.families import FAMILIES as FAMILIES
    from mxfp4_core.naming.families import Family as Family
    from mxfp4_core.naming.families import GatedActivation as GatedActivation
    from mxfp4_core.naming.providers import Described as Described
    from mxfp4_core.naming.providers import Headers as Headers
    from mxfp4_core.naming.providers import ModelProvider as ModelProvider
    from mxfp4_core.naming.providers import check_belongs as check_belongs
    from mxfp4_core.naming.providers import describe as describe
    from mxfp4_core.naming.providers import installed_providers as installed_providers
    from mxfp4_core.naming.providers import load_provider as load_provider
    from mxfp4_core.naming.resolver import Resolver as Resolver
    from mxfp4_core.naming.view import KINDS as KINDS
    from mxfp4_core.naming.view import CheckpointTensor as CheckpointTensor
    from mxfp4_core.naming.view import Kind as Kind
    from mxfp4_core.naming.view import ModelView as ModelView
    from mxfp4_core.naming.view import Parameter as Parameter
    from mxfp4_core.naming.vocabulary import DEFAULT_FUSED as DEFAULT_FUSED
    from mxfp4_core.naming.vocabulary import transposed as transposed

_HOMES = {
    "FAMILIES": "families",
    "Family": "families",
    "GatedActivation": "families",
    "Described": "providers",
    "Headers": "providers",
    "ModelProvider": "providers",
    "check_belongs": "providers",
    "describe": "providers",
    "installed_providers": "providers",
    "load_provider": "providers",
    "KINDS": "view",
    "Kind": "view",
    "ModelView": "view",
    "Parameter": "view",
    "CheckpointTensor": "view",
    "DEFAULT_FUSED": "vocabulary",
    "transposed": "vocabulary",
    "Decision": "decision",
    "Resolver": "resolver",
    "exclude_patterns": "exclude_lists",
    "ModelFacts": "facts",
    "collapse": "braces",
}

__all__ = [
    "DEFAULT_FUSED",
    "FAMILIES",
    "KINDS",
    "CheckpointTensor",
    "Decision",
    "Described",
    "Family",
    "GatedActivation",
    "Headers",
    "Kind",
    "ModelFacts",
    "ModelProvider",
    "ModelView",
    "Parameter",
    "Resolver",
    "check_belongs",
    "collapse",
    "describe",
    "exclude_patterns",
    "installed_providers",
    "load_provider",
    "transposed",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
