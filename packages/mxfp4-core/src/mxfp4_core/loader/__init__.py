"""Quantise while an engine loads, with the engine's own loaders.

An engine's loader ends in one copy of a narrowed source into a view of its parameter. `LoadSession.wrap` runs that
loader against a stand-in on the meta device, catches the copy, reads from the view where the piece belongs, and
quantises the source straight into the real parts. So sharding stays the engine's business, no parameter
ever exists in high precision, and the unit of work is what the engine copies. ``docs/loading.md`` has the drawing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.loader.counting import count_modules as count_modules
    from mxfp4_core.loader.engine import EngineLoad as EngineLoad
    from mxfp4_core.loader.engine_layer import EngineLayer as EngineLayer
    from mxfp4_core.loader.engine_layer import EnginePlace as EnginePlace
    from mxfp4_core.loader.engine_method import METHODS as METHODS
    from mxfp4_core.loader.engine_method import EngineMethod as EngineMethod
    from mxfp4_core.loader.engine_method import check_config as check_config
    from mxfp4_core.loader.engine_method import check_free as check_free
    from mxfp4_core.loader.engine_method import check_release as check_release
    from mxfp4_core.loader.engine_method import config_and_facts as config_and_facts
    from mxfp4_core.loader.engine_method import installed_release as installed_release
    from mxfp4_core.loader.engine_method import refused_table as refused_table
    from mxfp4_core.loader.engine_names import EngineDecision as EngineDecision
    from mxfp4_core.loader.engine_names import EngineNames as EngineNames
    from mxfp4_core.loader.engine_names import renames_of as renames_of
    from mxfp4_core.loader.engine_parameters import device_of_new_tensors as device_of_new_tensors
    from mxfp4_core.loader.engine_parameters import has_memory as has_memory
    from mxfp4_core.loader.engine_parameters import hollow as hollow
    from mxfp4_core.loader.engine_parameters import placeholder as placeholder
    from mxfp4_core.loader.engine_parameters import register_parameter as register_parameter
    from mxfp4_core.loader.engine_parameters import widening as widening
    from mxfp4_core.loader.filling import fill_target as fill_target
    from mxfp4_core.loader.filling import put_rows as put_rows
    from mxfp4_core.loader.filling import read_rows as read_rows
    from mxfp4_core.loader.flat import quantize_rows as quantize_rows
    from mxfp4_core.loader.keys import Key as Key
    from mxfp4_core.loader.memory import MemoryMeter as MemoryMeter
    from mxfp4_core.loader.memory import MemoryUse as MemoryUse
    from mxfp4_core.loader.regions import Region as Region
    from mxfp4_core.loader.report import PHASES as PHASES
    from mxfp4_core.loader.report import LayerGroup as LayerGroup
    from mxfp4_core.loader.report import LoadReport as LoadReport
    from mxfp4_core.loader.report import LoadReportBuilder as LoadReportBuilder
    from mxfp4_core.loader.report import PhaseTime as PhaseTime
    from mxfp4_core.loader.session import LoadSession as LoadSession
    from mxfp4_core.loader.stored_tensors import StoredTensors as StoredTensors
    from mxfp4_core.loader.target import QuantTarget as QuantTarget

_HOMES = {
    "EngineLayer": "engine_layer",
    "EngineLoad": "engine",
    "EnginePlace": "engine_layer",
    "EngineDecision": "engine_names",
    "EngineNames": "engine_names",
    "renames_of": "engine_names",
    "METHODS": "engine_method",
    "EngineMethod": "engine_method",
    "check_config": "engine_method",
    "check_free": "engine_method",
    "check_release": "engine_method",
    "config_and_facts": "engine_method",
    "installed_release": "engine_method",
    "refused_table": "engine_method",
    "device_of_new_tensors": "engine_parameters",
    "has_memory": "engine_parameters",
    "hollow": "engine_parameters",
    "placeholder": "engine_parameters",
    "register_parameter": "engine_parameters",
    "widening": "engine_parameters",
    "fill_target": "filling",
    "put_rows": "filling",
    "read_rows": "filling",
    "quantize_rows": "flat",
    "count_modules": "counting",
    "Key": "keys",
    "Region": "regions",
    "LoadSession": "session",
    "QuantTarget": "target",
    "StoredTensors": "stored_tensors",
    "LayerGroup": "report",
    "LoadReport": "report",
    "LoadReportBuilder": "report",
    "PHASES": "report",
    "PhaseTime": "report",
    "MemoryMeter": "memory",
    "MemoryUse": "memory",
}

__all__ = [
    "METHODS",
    "PHASES",
    "EngineDecision",
    "EngineLayer",
    "EngineLoad",
    "EngineMethod",
    "EngineNames",
    "EnginePlace",
    "Key",
    "LayerGroup",
    "LoadReport",
    "LoadReportBuilder",
    "LoadSession",
    "MemoryMeter",
    "MemoryUse",
    "PhaseTime",
    "QuantTarget",
    "Region",
    "StoredTensors",
    "check_config",
    "check_free",
    "check_release",
    "config_and_facts",
    "count_modules",
    "device_of_new_tensors",
    "fill_target",
    "has_memory",
    "hollow",
    "installed_release",
    "placeholder",
    "put_rows",
    "quantize_rows",
    "read_rows",
    "refused_table",
    "register_parameter",
    "renames_of",
    "widening",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
