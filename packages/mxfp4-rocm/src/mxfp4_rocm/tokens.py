"""Tokens as AITER's kernels take them: quantised, with scales row by row or swizzled."""

from __future__ import annotations

import functools
from typing import Final

import torch
from torch import Tensor

from mxfp4_core import quantize as quantize_core
from mxfp4_core.arithmetic import E8M0_NAN, quantize_triton
from mxfp4_core.errors import BackendError
from mxfp4_rocm.contract import installed
from mxfp4_rocm.limits import ACTIVATION_PROFILE
from mxfp4_rocm.vendor import function

FP4: Final = getattr(torch, "float4_e2m1fn_x2", torch.uint8)
"""The dtype by which AITER knows pairs of codes."""

E8M0: Final = torch.float8_e8m0fnu
"""The dtype by which AITER knows scales."""

RULES: Final = ("aiter-triton", "aiter-triton-0.1.7", "aiter-hip", "aiter-hip-0.1.7")
"""Rules that a quantizer of AITER may have, newest first."""


def quantize_rows(x: Tensor, by_aiter: bool = False) -> tuple[Tensor, Tensor]:
    """Return uint8 codes [m, k/2] and scales [m, k/32] of tokens, contiguous; byte 255 for a block that is not finite.

    Args:
        x: bfloat16 or float32 [m, k], contiguous, k a multiple of 32.
        by_aiter: whether AITER's Triton quantizer does it, instead of the core's.

    Raises:
        BackendError: AITER's quantizer rounds by another rule than its source says.
    """
    if by_aiter:
        return _by_aiter(x)
    if x.is_cuda:
        return quantize_triton(x, ACTIVATION_PROFILE)
    made = quantize_core(x, profile=ACTIVATION_PROFILE, nonfinite="nan", name="x")
    return made.codes, made.scales


def _by_aiter(x: Tensor) -> tuple[Tensor, Tensor]:
    found, here = quantizer_rule(x.device), installed()
    rule = here.quantizer_profile if here is not None else ""
    if found != rule:
        raise BackendError(
            "AITER's quantizer",
            seen=f"it rounds named blocks by {found or 'a rule that has no name here'}",
            rule=f"it rounds by {rule}, as its source says",
            fix="leave the option quantizer out: the core's quantizer has the rule that it states",
        )
    codes, scales = function("dynamic_mxfp4_quant")(x)
    # The scales come as the transpose of [k/32, m]; NaN and infinity do not show in them.
    scales = scales.view(torch.uint8).contiguous()
    finite = x.unflatten(-1, (scales.shape[-1], -1)).isfinite().all(-1)
    return codes.view(torch.uint8), torch.where(finite, scales, E8M0_NAN)


@functools.cache
def quantizer_rule(device: torch.device) -> str:
    """Return by which rule AITER's Triton quantizer rounds on a device, empty if by none that has a name here.

    It is given blocks in which the rules differ: ties, maxima on both sides of each limit, zeros.
    """
    codes, scales = function("dynamic_mxfp4_quant")(probe_blocks().to(device))
    for name in RULES:
        want = quantize_core(probe_blocks(), profile=name)
        same = torch.equal(codes.view(torch.uint8).cpu(), want.codes)
        if same and torch.equal(scales.view(torch.uint8).cpu(), want.scales):
            return name
    return ""


def probe_blocks() -> Tensor:
    """Return bfloat16 [24, 32]: in each row every multiple of 1/4 below its maximum, around 4, 6, 7 and 8."""
    steps = torch.arange(32.0) / 4 * torch.tensor([1.0, -1.0]).repeat(16)
    ends = torch.tensor(
        [0.0, 3.96875, 4.0, 4.03125, 5.96875, 6.0, 6.03125, 6.96875, 7.0, 7.03125, 7.96875, 8.0]
    )
    rows = torch.minimum(steps.abs(), ends[:, None]) * steps.sign()
    rows[:, 0] = ends
    return torch.cat((rows, rows * 2.0**-40)).to(torch.bfloat16)


__all__ = ["E8M0", "FP4", "RULES", "probe_blocks", "quantize_rows", "quantizer_rule"]
