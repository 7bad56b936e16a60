"""Tables of one profile for the GPU quantizer; derived from the core's, never written by hand."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from mxfp4_core.codec import Ties
from mxfp4_core.format import E8M0_NAN
from mxfp4_core.numerics import FLUSH, Profile, Zeros
from mxfp4_core.steps import steps


def fits_bfloat16(profile: Profile) -> bool:
    """Say whether the packed bfloat16 kernel can do the profile: ties to even, signs of zeros kept."""
    return profile.ties is Ties.EVEN and profile.zeros is Zeros.KEEP and not profile.low_tie_up


@lru_cache(maxsize=128)
def bfloat16_tables(profile: Profile, device: torch.device) -> tuple[Tensor, Tensor, bool]:
    """Return the tables of the packed bfloat16 kernel.

    Row ``r`` holds the 128 block maxima with exponent field ``r``; in row 0 these are zero and the subnormals.

    Args:
        profile: one that ``fits_bfloat16``.
        device: where the tables go.

    Returns:
        int32 [256], the mantissa (bits 22:16, as in float32) from which the second state of a row holds; and int32
        [512], the two states of each row: scale byte in bits 7:0 (255 for blocks that the reference does), and in
        bits 31:16 the bfloat16 bits of the factor 2^-exponent; and whether this covers every finite maximum.
    """
    bits = torch.arange(255 * 128, dtype=torch.int32)
    byte, exponent = profile.scale((bits << 16).view(torch.float32).to(torch.float64), torch.bfloat16)
    byte = torch.where((exponent < -127) | ((exponent > 127) & (exponent != FLUSH)), E8M0_NAN, byte)
    states = (byte | (_factor(exponent) << 16)).to(torch.int32).view(255, 128)
    changed = states != states[:, :1]
    step = torch.where(changed.any(1), changed.int().argmax(1), 128)
    after = torch.arange(128)[None] >= step[:, None]
    # A row with more than one step is left to the reference from its first step on.
    single = (~after | (states == states[:, -1:])).all(1)
    table = torch.full((2, 256), E8M0_NAN, dtype=torch.int32)  # row 255: NaN and infinity
    table[0, :255], table[1, :255] = states[:, 0], torch.where(single, states[:, -1], E8M0_NAN)
    threshold = torch.full((256,), 128, dtype=torch.int32)
    threshold[:255] = step
    complete = bool(single.all()) and bool((table[:, :255] & 0xFF != E8M0_NAN).all())
    return (threshold << 16).to(device), table.reshape(-1).to(device), complete


def _factor(exponent: Tensor) -> Tensor:
    """Return the bfloat16 bits of 2^-exponent, zero for FLUSH."""
    bits = torch.where(exponent >= 127, 0x0040, (127 - exponent.clamp(-127, 126)) << 7)
    return torch.where(exponent == FLUSH, 0, bits).to(torch.int32)


@lru_cache(maxsize=128)
def portable_tables(
    profile: Profile, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tables of the portable kernel: the core's, on the device.

    Returns:
        int32 [256] mantissa thresholds; int32 [512] scale bytes in bits 7:0 and exponents in bits 31:8; int32 [8] the
        seven element thresholds and the one lifted quotient.
    """
    table = steps(profile, dtype)
    state = table.byte.to(torch.int32) | (table.exponent << 8)
    limits = torch.cat((table.thresholds, torch.tensor([table.lifted], dtype=torch.int32)))
    return table.mantissa.to(device), state.reshape(-1).to(device), limits.to(device)


__all__ = ["bfloat16_tables", "fits_bfloat16", "portable_tables"]
