"""The slow and obvious quantizers, dequantizers and products: the judges of everything else.

``single`` judges the format ``mxfp4``, and its three functions are those of the room; ``dual`` and ``mxfp8`` judge the
formats of their names.
"""

from mxfp4_core.arithmetic.reference.single import dequantize, matmul, quantize

__all__ = ["dequantize", "matmul", "quantize"]
