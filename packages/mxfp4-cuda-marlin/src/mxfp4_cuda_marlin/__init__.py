"""MXFP4 on NVIDIA Hopper: W4A16 linear and MoE layers, a GPU quantizer, and Marlin's layouts.

Importing it touches no device and compiles nothing.
"""

from __future__ import annotations

from mxfp4_cuda_marlin.backend import backend
from mxfp4_cuda_marlin.boundary import find_scales, scale_bytes
from mxfp4_cuda_marlin.layout import Sm90Layout
from mxfp4_cuda_marlin.marlin import MarlinLayout

__all__ = ["MarlinLayout", "Sm90Layout", "backend", "find_scales", "scale_bytes"]
