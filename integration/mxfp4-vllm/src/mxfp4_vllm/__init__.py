"""MXFP4 in vLLM: installed next to the engine, it makes ``--quantization mxfp4-core`` a choice.

vLLM finds the package by its entry point and calls `plugin.register` in each of its processes. Nothing needs to be
imported by hand, and importing the package does not import vLLM.
"""

from mxfp4_vllm.words import METHOD, METHOD_FP8

__all__ = ["METHOD", "METHOD_FP8"]
