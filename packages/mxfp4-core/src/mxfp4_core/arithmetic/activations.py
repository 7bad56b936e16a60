"""What the words for activations mean: x rounded to what a kernel multiplies, as float32 values.

A kernel that quantises its input multiplies rounded values. These functions make the same values in float32, so that
references and judges multiply what it multiplies. Every word quantises along the last axis, each token by itself:

    mxfp4   as ``mxfp4_core.quantize``: blocks of 32, profile ``even/even`` (compressed-tensors, Quark, AITER's Triton)
    mxfp8   E4M3 under E8M0 scales, blocks of 32, profile ``floor/even`` (OCP MX v1.0, section 6.3)
    fp8     E4M3 under float32 scales amax / 448, groups of 128 (compressed-tensors' preset MXFP4xFP8, DeepGEMM)

A tail is a shorter block or group: padding with zeros changes no scale. NaN or infinity makes its whole block or group
NaN. The scale that Quark's ``mxfp4_fp8`` has for a whole tensor comes from calibration: `fp8_static` takes it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.nn.functional import pad

from mxfp4_core.arithmetic.fast.blocks import WEIGHT_DTYPES
from mxfp4_core.arithmetic.format import E4M3_MAX
from mxfp4_core.arithmetic.quantize import quantize
from mxfp4_core.errors import ConfigError, FormatError

WORDS: Final = ("none", "mxfp4", "mxfp8", "fp8")
"""What `quantized` takes. ``auto`` is not among them: a backend says which of these it means."""

FP8_GROUP: Final = 128
"""Values of a token that share one scale under the word ``fp8``."""


def quantized(x: torch.Tensor, word: str, *, profile: str | None = None) -> torch.Tensor:
    """Return x as a kernel sees it that quantises its input.

    Args:
        x: bfloat16, float16 or float32 ``[..., K]``, any K, any strides, any device.
        word: ``none``, ``mxfp4``, ``mxfp8`` or ``fp8``.
        profile: of ``mxfp4`` or ``mxfp8``, where a kernel has another one than the word's own.

    Returns:
        float32 ``[..., K]`` on the same device.

    Raises:
        ConfigError: another word, or a profile that does not make its format.
        FormatError: another dtype.
    """
    if word not in WORDS or (profile is not None and word in ("none", "fp8")):
        raise ConfigError(
            "activations cannot be quantised like that",
            seen=repr(word) + ("" if profile is None else f" with profile {profile!r}"),
            rule=f"the word is one of {', '.join(WORDS)}; mxfp4 and mxfp8 have profiles",
            fix="use one of these words; for 'auto', ask the backend's verdict which one it means",
        )
    if x.dtype not in WEIGHT_DTYPES:
        raise FormatError(
            "activations cannot be quantised",
            seen=str(x.dtype),
            rule=f"activations are one of {', '.join(map(str, WEIGHT_DTYPES))}",
            fix="convert them first",
        )
    if word == "none":
        return x.to(torch.float32)
    if word == "fp8":
        return fp8(x)
    made = quantize(x, format=word, profile=profile, tail="pad", nonfinite="nan", name="x")
    return made.dequantize(torch.float32)


def fp8(x: torch.Tensor) -> torch.Tensor:
    """Return x after a trip through E4M3, a float32 scale for each 128 values of a token.

    The scale is amax / 448, 1 for a group of zeros; x / scale is made in float32, then rounded to E4M3, ties to even.

    Args:
        x: any float dtype ``[..., K]``; the last group may be shorter.

    Returns:
        float32 ``[..., K]``: element x scale, rounded to float32.
    """
    k = x.shape[-1]
    groups = pad(x.to(torch.float32), (0, -k % FP8_GROUP)).unflatten(-1, (-1, FP8_GROUP))
    amax = groups.abs().amax(-1, keepdim=True)
    scale = torch.where(amax == 0, 1.0, amax / torch.full_like(amax, E4M3_MAX))
    scale = torch.where(torch.isfinite(amax), scale, torch.nan)
    return fp8_static(groups, scale).flatten(-2)[..., :k]


def fp8_static(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return x after a trip through E4M3 under given scales; what lies beyond 448 x scale saturates.

    Args:
        x: any float dtype ``[..., K]``.
        scale: float, positive, broadcast against x; one number for Quark's per-tensor scheme, whose file has it as
            ``input_scale``.

    Returns:
        float32 ``[..., K]``: element x scale, rounded to float32. NaN where x is NaN.
    """
    wide = scale.to(torch.float32)
    quotient = (x.to(torch.float32) / wide).clamp(-E4M3_MAX, E4M3_MAX)
    return quotient.to(torch.float8_e4m3fn).to(torch.float32) * wide


__all__ = ["FP8_GROUP", "WORDS", "fp8", "fp8_static", "quantized"]
