"""Backends: what they are asked, what they answer, and which one is chosen.

The words that a backend and the core exchange are in ``problem`` and ``protocol``; how to write one:
``docs/add-a-backend.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.backend.answers import No as No
    from mxfp4_core.backend.answers import Numerics as Numerics
    from mxfp4_core.backend.answers import Rank as Rank
    from mxfp4_core.backend.answers import Verdict as Verdict
    from mxfp4_core.backend.answers import Yes as Yes
    from mxfp4_core.backend.asking import choices_of as choices_of
    from mxfp4_core.backend.asking import kernels_of as kernels_of
    from mxfp4_core.backend.asking import numerics_for as numerics_for
    from mxfp4_core.backend.asking import verdict as verdict
    from mxfp4_core.backend.build import TorchBuild as TorchBuild
    from mxfp4_core.backend.build import torch_build as torch_build
    from mxfp4_core.backend.choices import Choice as Choice
    from mxfp4_core.backend.choices import tabulate as tabulate
    from mxfp4_core.backend.compiled import Kernel as Kernel
    from mxfp4_core.backend.compiled import Kernels as Kernels
    from mxfp4_core.backend.device import Device as Device
    from mxfp4_core.backend.device import probe as probe
    from mxfp4_core.backend.operators import Operators as Operators
    from mxfp4_core.backend.options import Options as Options
    from mxfp4_core.backend.options import check_choice as check_choice
    from mxfp4_core.backend.options import check_keys as check_keys
    from mxfp4_core.backend.problem import GPT_OSS_SWIGLU as GPT_OSS_SWIGLU
    from mxfp4_core.backend.problem import SILU as SILU
    from mxfp4_core.backend.problem import Activation as Activation
    from mxfp4_core.backend.problem import Gate as Gate
    from mxfp4_core.backend.problem import Matrix as Matrix
    from mxfp4_core.backend.problem import Op as Op
    from mxfp4_core.backend.problem import Problem as Problem
    from mxfp4_core.backend.problem import Tokens as Tokens
    from mxfp4_core.backend.problem import input_format as input_format
    from mxfp4_core.backend.protocol import Backend as Backend
    from mxfp4_core.backend.protocol import InPlaceLayout as InPlaceLayout
    from mxfp4_core.backend.protocol import Layout as Layout
    from mxfp4_core.backend.protocol import Packed as Packed
    from mxfp4_core.backend.protocol import pack_in_place as pack_in_place
    from mxfp4_core.backend.quantizers import CORE as CORE
    from mxfp4_core.backend.quantizers import DeviceQuantizer as DeviceQuantizer
    from mxfp4_core.backend.quantizers import DeviceQuantizers as DeviceQuantizers
    from mxfp4_core.backend.quantizers import device_quantizer as device_quantizer
    from mxfp4_core.backend.routes import Routes as Routes
    from mxfp4_core.backend.select import KNOWN as KNOWN
    from mxfp4_core.backend.select import Known as Known
    from mxfp4_core.backend.select import default_problem as default_problem
    from mxfp4_core.backend.select import explain as explain
    from mxfp4_core.backend.select import select_backend as select_backend
    from mxfp4_core.backend.selection import Candidate as Candidate
    from mxfp4_core.backend.selection import Selection as Selection
    from mxfp4_core.backend.usual import settled as settled
    from mxfp4_core.backend.usual import settled_folder as settled_folder
    from mxfp4_core.backend.warmup import State as State
    from mxfp4_core.backend.warmup import Warmed as Warmed
    from mxfp4_core.backend.warmup import compile_all as compile_all

_HOMES = {
    "TorchBuild": "build",
    "torch_build": "build",
    "Activation": "problem",
    "GPT_OSS_SWIGLU": "problem",
    "Gate": "problem",
    "Matrix": "problem",
    "Op": "problem",
    "Problem": "problem",
    "SILU": "problem",
    "Tokens": "problem",
    "input_format": "problem",
    "Operators": "operators",
    "Options": "options",
    "check_choice": "options",
    "check_keys": "options",
    "Routes": "routes",
    "Rank": "answers",
    "No": "answers",
    "Numerics": "answers",
    "Verdict": "answers",
    "Yes": "answers",
    "Backend": "protocol",
    "InPlaceLayout": "protocol",
    "Layout": "protocol",
    "Packed": "protocol",
    "choices_of": "asking",
    "kernels_of": "asking",
    "pack_in_place": "protocol",
    "verdict": "asking",
    "numerics_for": "asking",
    "Choice": "choices",
    "tabulate": "choices",
    "Kernel": "compiled",
    "Kernels": "compiled",
    "State": "warmup",
    "Warmed": "warmup",
    "compile_all": "warmup",
    "Device": "device",
    "probe": "device",
    "Candidate": "selection",
    "KNOWN": "select",
    "Known": "select",
    "Selection": "selection",
    "default_problem": "select",
    "explain": "select",
    "select_backend": "select",
    "settled": "usual",
    "settled_folder": "usual",
    "CORE": "quantizers",
    "DeviceQuantizer": "quantizers",
    "DeviceQuantizers": "quantizers",
    "device_quantizer": "quantizers",
}

__all__ = [
    "CORE",
    "GPT_OSS_SWIGLU",
    "KNOWN",
    "SILU",
    "Activation",
    "Backend",
    "Candidate",
    "Choice",
    "Device",
    "DeviceQuantizer",
    "DeviceQuantizers",
    "Gate",
    "InPlaceLayout",
    "Kernel",
    "Kernels",
    "Known",
    "Layout",
    "Matrix",
    "No",
    "Numerics",
    "Op",
    "Operators",
    "Options",
    "Packed",
    "Problem",
    "Rank",
    "Routes",
    "Selection",
    "State",
    "Tokens",
    "TorchBuild",
    "Verdict",
    "Warmed",
    "Yes",
    "check_choice",
    "check_keys",
    "choices_of",
    "compile_all",
    "default_problem",
    "device_quantizer",
    "explain",
    "input_format",
    "kernels_of",
    "numerics_for",
    "pack_in_place",
    "probe",
    "select_backend",
    "settled",
    "settled_folder",
    "tabulate",
    "torch_build",
    "verdict",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
