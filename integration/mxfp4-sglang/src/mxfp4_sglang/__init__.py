"""MXFP4 in SGLang: installed next to the engine, it makes ``--quantization mxfp4-core`` a choice.

SGLang finds the package by its entry points and calls `plugin.register` in each process of a language model, and
`plugin.register_diffusion` in each of a diffusion server. Importing the package does not import SGLang.
"""

from mxfp4_sglang.words import METHOD, METHOD_FP8

__all__ = ["METHOD", "METHOD_FP8"]
