"""Scales as other programs hand them over, turned into E8M0 bytes; nothing is rounded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mxfp4_core.arithmetic import E8M0_BIAS, E8M0_NAN
from mxfp4_core.errors import FormatError

SCALE_SUFFIXES = ("_scale", "_scale_inv")
"""How checkpoints name the scales of ``X_weight``: ``X_weight_scale``, or DeepSeek's ``X_weight_scale_inv``."""


def scale_bytes(scales: Tensor, name: str = "scales") -> Tensor:
    """Return scales as uint8 E8M0 bytes.

    Args:
        scales: uint8 bytes, float8_e8m0fnu, or float32 powers of two (NaN becomes byte 255), any shape and device.
        name: name of the tensor in messages.

    Returns:
        uint8 of the same shape; shares memory with ``scales`` unless they are float32.

    Raises:
        FormatError: another dtype, or a float32 value that is no power of two from 2^-127 to 2^127.
    """
    if scales.dtype == torch.uint8:
        return scales
    if scales.dtype == torch.float8_e8m0fnu:
        return scales.view(torch.uint8)
    if scales.dtype != torch.float32:
        raise FormatError(
            f"{name} cannot be read as E8M0",
            seen=str(scales.dtype),
            rule="scales are uint8 bytes, float8_e8m0fnu, or float32 powers of two",
            fix="pass the scales as the checkpoint stores them",
        )
    bits = scales.view(torch.int32)
    # 2^-127 is the one power of two that is subnormal in float32.
    found = torch.where(bits == 0x00400000, 0, bits >> 23)
    nan = scales.isnan()
    exact = (((bits & 0x7FFFFF) == 0) & (found > 0) & (found < 255)) | (bits == 0x00400000) | nan
    if not bool(exact.all()):
        worst = float(scales[~exact][0])
        raise FormatError(
            f"{name} cannot be read as E8M0",
            seen=f"{worst!r}, {int((~exact).sum())} such values",
            rule=f"a scale is a power of two from 2^-{E8M0_BIAS} to 2^{E8M0_BIAS}",
            fix="check that these are MXFP4 scales: NVFP4 scales and dequantised ones are not powers of two",
        )
    return torch.where(nan, E8M0_NAN, found).to(torch.uint8)


def find_scales(tensors: Mapping[str, Tensor], weight: str) -> Tensor:
    """Return the scale bytes that belong to the weight called ``weight``, by either name.

    Args:
        tensors: the tensors of a checkpoint or of a module, by name.
        weight: for example ``w13_weight``.

    Raises:
        FormatError: neither name is there, or both are; or see ``scale_bytes``.
    """
    found = [name for name in (weight + suffix for suffix in SCALE_SUFFIXES) if name in tensors]
    if len(found) != 1:
        raise FormatError(
            f"scales of {weight}",
            seen=f"{len(found)} of {', '.join(weight + suffix for suffix in SCALE_SUFFIXES)}",
            rule="exactly one of these names holds the scales",
            fix="keep the one that the checkpoint's writer documents",
        )
    return scale_bytes(tensors[found[0]], found[0])


__all__ = ["SCALE_SUFFIXES", "find_scales", "scale_bytes"]
