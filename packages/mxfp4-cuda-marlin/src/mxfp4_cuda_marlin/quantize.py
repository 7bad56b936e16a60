"""The GPU quantizer: the core's bytes for every profile, at the speed of a copy for bfloat16.

Two Triton kernels do the work: one for bfloat16 on NVIDIA GPUs that computes on pairs (PTX inside), and a portable one
for every other dtype, tie rule and GPU that Triton knows. Blocks that the tables cannot express (NaN, infinity,
subnormal maxima under some profiles) come back marked and are done by the core's reference.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from mxfp4_core import reference
from mxfp4_core.codec import Ties
from mxfp4_core.errors import BackendError
from mxfp4_core.format import BLOCK, E8M0_NAN
from mxfp4_core.numerics import Profile, Zeros
from mxfp4_core.profile import profiles, resolve
from mxfp4_core.scales import RULES
from mxfp4_cuda_marlin.quantize_tables import bfloat16_tables, fits_bfloat16, portable_tables

PROFILES: Final = frozenset(profiles()) | {
    f"{rule}/{ties}" for rule in (*RULES, "ceil_d(7.25)") for ties in map(str, Ties)
}
"""Every named profile of the core and every pair of a rule and a tie rule; of ``ceil_d`` only the usual limit."""

_AT_ONCE: Final = 1 << 30  # blocks in one launch: 32-bit block numbers stay positive
_BLOCKS: Final = 64
_WARPS, _PORTABLE_WARPS = 2, 4  # measured on an H200: 1, 4 and 8 warps are 2 to 12 % slower for bfloat16


@functools.cache
def _kernels() -> ModuleType:
    try:
        from mxfp4_cuda_marlin import quantize_kernels
    except ImportError as error:
        raise BackendError(
            "the GPU quantizer",
            seen=f"importing Triton failed: {error}",
            rule="its kernels are written in Triton",
            fix="pip install 'triton>=3.4', or use mxfp4_core.quantize, which runs on any device without it",
        ) from error
    return quantize_kernels


def quantize(weight: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    """Quantise a weight on its GPU.

    Args:
        weight: bfloat16, float16 or float32 [..., k], contiguous, k a multiple of 32.
        profile: name of a profile or a pair such as ``even/even``; also ``ceil_d(D)`` with any D that the core takes.

    Returns:
        codes uint8 [..., k/2] and scales uint8 [..., k/32]: the bytes that ``mxfp4_core.quantize`` gives, with byte
        255 for blocks that are not finite. For bfloat16 and the profiles with ties to even that keep the sign of
        zero, the call is asynchronous; otherwise it waits, to learn whether blocks are left for the reference.

    Raises:
        BackendError: Triton is missing, or the weight is not on a GPU.
    """
    chosen = resolve(profile)
    if weight.device.type != "cuda":
        raise BackendError(
            "the GPU quantizer",
            seen=f"a weight on {weight.device}",
            rule="the weight is on a CUDA or ROCm device",
            fix="move it there, or use mxfp4_core.quantize, which runs on any device",
        )
    *lead, k = weight.shape
    codes = weight.new_empty((*lead, k // 2), dtype=torch.uint8)
    scales = weight.new_empty((*lead, k // BLOCK), dtype=torch.uint8)
    if weight.numel():
        with torch.cuda.device(weight.device):
            _run(weight, codes, scales, chosen)
    return codes, scales


def _run(weight: Tensor, codes: Tensor, scales: Tensor, profile: Profile) -> None:
    source, out, out_scales = weight.view(-1, BLOCK), codes.view(-1, BLOCK // 2), scales.view(-1)
    packed = weight.dtype is torch.bfloat16 and torch.version.hip is None and fits_bfloat16(profile)
    complete = packed and bfloat16_tables(profile, weight.device)[2]
    special = out_scales if complete else torch.zeros(1, dtype=torch.int32, device=weight.device)
    run = _packed if packed else _portable
    for start in range(0, out_scales.numel(), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        run(source[part], out[part], out_scales[part], special, profile)
    if complete or not int(special):
        return
    left = (out_scales == E8M0_NAN).nonzero(as_tuple=True)[0]
    done = reference.quantize(source[left].cpu(), profile)
    out[left] = done[0].to(weight.device)
    out_scales[left] = done[1][:, 0].to(weight.device)


def _packed(source: Tensor, codes: Tensor, scales: Tensor, special: Tensor, profile: Profile) -> None:
    if source.data_ptr() % 4:  # pairs are read as 32-bit words
        source = source.clone()
    blocks = scales.numel()
    threshold, state, complete = bfloat16_tables(profile, source.device)
    _kernels().bfloat16_kernel[(-(-blocks // _BLOCKS),)](
        source.view(torch.int32),
        codes.view(torch.int8),
        scales.view(torch.int8),
        *(threshold, state, special, blocks),
        MARK=not complete,
        NB=_BLOCKS,
        num_warps=_WARPS,
    )


def _portable(source: Tensor, codes: Tensor, scales: Tensor, special: Tensor, profile: Profile) -> None:
    blocks, bits = scales.numel(), {torch.bfloat16: torch.int16, torch.float32: torch.int32}
    _kernels().portable_kernel[(-(-blocks // _BLOCKS),)](
        source.view(bits.get(source.dtype, source.dtype)),
        codes,
        scales,
        *portable_tables(profile, source.dtype, source.device),
        special,
        blocks,
        ZERO=profile.zero_byte,
        PLUS=profile.zeros is Zeros.PLUS,
        EXACT=profile.zeros is Zeros.PLUS_INPUT,
        MINUS=profile.zeros is Zeros.MINUS_INPUT,
        NB=_BLOCKS,
        num_warps=_PORTABLE_WARPS,
    )


__all__ = ["PROFILES", "quantize"]
