"""Modules that hold MXFP4 weights, for the adapters of engines and for people who build models by hand.

A module is born with canonical buffers, which any loader can fill. ``prepare`` then derives the layout of a
backend and lets go of the canonical bytes, if they are different ones. ``state_dict`` always gives canonical
bytes, and ``load_state_dict`` takes them, into the same device memory as before. The weights are frozen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.modules.ask import chosen_backends as chosen_backends
    from mxfp4_core.modules.ask import device_names as device_names
    from mxfp4_core.modules.ask import likely_backends as likely_backends
    from mxfp4_core.modules.base import Mxfp4Module as Mxfp4Module
    from mxfp4_core.modules.decisions import decide as decide
    from mxfp4_core.modules.empty import empty_module as empty_module
    from mxfp4_core.modules.empty import hold_place as hold_place
    from mxfp4_core.modules.experts import find_gate as find_gate
    from mxfp4_core.modules.filled import settle as settle
    from mxfp4_core.modules.filled import widened as widened
    from mxfp4_core.modules.held import Mxfp4Held as Mxfp4Held
    from mxfp4_core.modules.layers import Mxfp4Experts as Mxfp4Experts
    from mxfp4_core.modules.layers import Mxfp4Linear as Mxfp4Linear
    from mxfp4_core.modules.layers import Mxfp4UngatedExperts as Mxfp4UngatedExperts
    from mxfp4_core.modules.logical import LogicalWeight as LogicalWeight
    from mxfp4_core.modules.model_plan import ModelPlan as ModelPlan
    from mxfp4_core.modules.model_view import describe_parameters as describe_parameters
    from mxfp4_core.modules.model_view import view_of as view_of
    from mxfp4_core.modules.parked import Parking as Parking
    from mxfp4_core.modules.planning import plan_model as plan_model
    from mxfp4_core.modules.prepare import prepare_model as prepare_model
    from mxfp4_core.modules.quantize import Quantised as Quantised
    from mxfp4_core.modules.quantize import quantize_ as quantize_
    from mxfp4_core.modules.readers import weight_readers as weight_readers
    from mxfp4_core.modules.sensitivity import sensitivities as sensitivities
    from mxfp4_core.modules.sites import Site as Site
    from mxfp4_core.modules.sites import find_sites as find_sites
    from mxfp4_core.modules.stored import Stored as Stored
    from mxfp4_core.modules.stored import ask_backends as ask_backends
    from mxfp4_core.modules.stored import leave_activations as leave_activations
    from mxfp4_core.modules.stored import plan_stored as plan_stored
    from mxfp4_core.modules.stored import stored_config as stored_config
    from mxfp4_core.modules.table import summary as summary
    from mxfp4_core.modules.weights import Weight as Weight

_HOMES = {
    "ask_backends": "stored",
    "decide": "decisions",
    "stored_config": "stored",
    "leave_activations": "stored",
    "plan_stored": "stored",
    "Stored": "stored",
    "device_names": "ask",
    "likely_backends": "ask",
    "chosen_backends": "ask",
    "empty_module": "empty",
    "hold_place": "empty",
    "settle": "filled",
    "widened": "filled",
    "ModelPlan": "model_plan",
    "describe_parameters": "model_view",
    "view_of": "model_view",
    "Parking": "parked",
    "plan_model": "planning",
    "Quantised": "quantize",
    "quantize_": "quantize",
    "weight_readers": "readers",
    "sensitivities": "sensitivity",
    "Site": "sites",
    "find_sites": "sites",
    "find_gate": "experts",
    "summary": "table",
    "Weight": "weights",
    "Mxfp4Module": "base",
    "LogicalWeight": "logical",
    "Mxfp4Held": "held",
    "Mxfp4Experts": "layers",
    "Mxfp4Linear": "layers",
    "Mxfp4UngatedExperts": "layers",
    "prepare_model": "prepare",
}

__all__ = [
    "LogicalWeight",
    "ModelPlan",
    "Mxfp4Experts",
    "Mxfp4Held",
    "Mxfp4Linear",
    "Mxfp4Module",
    "Mxfp4UngatedExperts",
    "Parking",
    "Quantised",
    "Site",
    "Stored",
    "Weight",
    "ask_backends",
    "chosen_backends",
    "decide",
    "describe_parameters",
    "device_names",
    "empty_module",
    "find_gate",
    "find_sites",
    "hold_place",
    "leave_activations",
    "likely_backends",
    "plan_model",
    "plan_stored",
    "prepare_model",
    "quantize_",
    "sensitivities",
    "settle",
    "stored_config",
    "summary",
    "view_of",
    "weight_readers",
    "widened",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
