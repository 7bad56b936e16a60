"""The GPU quantizer: the core's, written in Triton."""

from __future__ import annotations

from torch import Tensor

from mxfp4_core.arithmetic import quantize_triton
from mxfp4_cuda_marlin.limits import PROFILES


def quantize(weight: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    """Quantise a weight on its GPU; see ``mxfp4_core.arithmetic.quantize_triton``.

    Args:
        weight: bfloat16, float16 or float32 [..., k], k a multiple of 32.
        profile: name of a profile or a pair such as ``even/even``.

    Returns:
        codes uint8 [..., k/2] and scales uint8 [..., k/32].
    """
    return quantize_triton(weight, profile)


__all__ = ["PROFILES", "quantize"]
