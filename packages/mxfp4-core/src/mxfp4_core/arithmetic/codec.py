"""Elements: quotients to E2M1 codes and back, and two codes to a byte.

A quotient is a weight divided by the scale of its block. Its magnitude index counts how many of the seven midpoints
(``format.E2M1_THRESHOLDS``) it has passed; what happens exactly on a midpoint is the tie rule. Beyond the last one it
saturates to 6.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise

import torch

from mxfp4_core.arithmetic.format import E2M1_THRESHOLDS, E2M1_VALUES, E8M0_BIAS, E8M0_NAN
from mxfp4_core.errors import FormatError


class Ties(StrEnum):
    """Where a quotient goes that lies exactly between two magnitudes."""

    EVEN = "even"
    """To the code with an even mantissa bit: OCP, torchao, Quark, compressed-tensors, hardware conversions."""
    AWAY = "away"
    """To the larger magnitude: old triton_kernels, AITER 0.1.7, msmodelslim."""
    ZERO = "zero"
    """To the smaller magnitude: ModelOpt, ggml, DeepGEMM."""

    @property
    def up(self) -> tuple[bool, ...]:
        """For each of the seven midpoints, whether a quotient on it takes the larger magnitude."""
        if self is Ties.EVEN:
            return tuple(index % 2 == 1 for index in range(7))
        return (self is Ties.AWAY,) * 7


def encode(magnitude: torch.Tensor, ties: Ties) -> torch.Tensor:
    """Return the magnitude index of each quotient.

    Args:
        magnitude: float64, any shape, not negative: absolute quotients.
        ties: the tie rule.

    Returns:
        uint8 of the same shape, 0 to 7.
    """
    index = torch.zeros(magnitude.shape, dtype=torch.uint8, device=magnitude.device)
    for threshold, up in zip(E2M1_THRESHOLDS, ties.up, strict=True):
        index += magnitude >= threshold if up else magnitude > threshold
    return index


def encode_down(magnitude: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Return the magnitude index of each quotient, rounded toward minus infinity and saturated at 6.

    Args:
        magnitude: float64, any shape, not negative: absolute quotients.
        negative: bool of the same shape: the magnitudes of these quotients round up.

    Returns:
        uint8 of the same shape, 0 to 7.
    """
    index = torch.zeros(magnitude.shape, dtype=torch.uint8, device=magnitude.device)
    for below, value in pairwise(E2M1_VALUES[:8]):
        index += torch.where(negative, magnitude > below, magnitude >= value)
    return index


def decode(codes: torch.Tensor) -> torch.Tensor:
    """Return the float64 value of each unpacked code (uint8, 0 to 15), any shape."""
    table = torch.tensor(E2M1_VALUES, dtype=torch.float64, device=codes.device)
    return table[codes.long()]


def decode_scales(scales: torch.Tensor) -> torch.Tensor:
    """Return the float64 value of each E8M0 byte: 2**(byte - 127), and NaN for byte 255."""
    return torch.where(scales == E8M0_NAN, torch.nan, power_of_two(scales.to(torch.int64) - E8M0_BIAS))


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Return 2**exponent as float64, exact for int64 exponents from -1022 to 1023."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Put two codes into a byte, the even K in the low nibble.

    Args:
        codes: uint8 ``[..., K]``, 0 to 15, K even.

    Returns:
        uint8 ``[..., K / 2]``.

    Raises:
        FormatError: wrong dtype or odd K.
    """
    if codes.dtype != torch.uint8 or codes.ndim == 0 or codes.shape[-1] % 2:
        raise FormatError(
            "codes cannot be packed",
            seen=f"{codes.dtype} of shape {tuple(codes.shape)}",
            rule="unpacked codes are uint8 with an even last axis",
            fix="pad K to a multiple of 32 with zero codes first",
        )
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Undo :func:`pack`: uint8 ``[..., K / 2]`` to uint8 ``[..., K]``.

    Raises:
        FormatError: wrong dtype.
    """
    if packed.dtype != torch.uint8 or packed.ndim == 0:
        raise FormatError(
            "codes cannot be unpacked",
            seen=f"{packed.dtype} of shape {tuple(packed.shape)}",
            rule="packed codes are uint8, two a byte along the last axis",
            fix="view the bytes as torch.uint8",
        )
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


__all__ = ["Ties", "decode", "decode_scales", "encode", "encode_down", "pack", "power_of_two", "unpack"]
