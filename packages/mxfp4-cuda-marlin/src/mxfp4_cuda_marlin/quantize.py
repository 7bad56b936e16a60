"""The GPU quantizer: the core's bytes for every profile and dtype, at or near the speed of a copy.

Two Triton kernels do the work: one for bfloat16 and float16 on NVIDIA GPUs from SM90 on that computes on pairs (PTX
inside), and a portable one for float32 and for every other GPU that Triton knows. The scale rule of a profile is a
table; should one not cover a block, the core's reference does it.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from mxfp4_core import profiles
from mxfp4_core.arithmetic import BLOCK, E8M0_NAN, RULES, Profile, Ties, reference, resolve
from mxfp4_core.errors import BackendError, FormatError, ShapeError
from mxfp4_cuda_marlin.quantize_ptx import encoder
from mxfp4_cuda_marlin.quantize_tables import tables
from mxfp4_cuda_marlin.toolchain import compiling

PROFILES: Final = frozenset(profiles()) | {
    f"{rule}/{ties}" for rule in (*RULES, "ceil_d(7.25)") for ties in map(str, Ties)
}
"""Every named profile of the core and every pair of a rule and a tie rule; of ``ceil_d`` only the usual limit."""

_AT_ONCE: Final = 1 << 30  # blocks in one launch: 32-bit block numbers stay positive
_BLOCKS, _WARPS = 64, 2  # of a program; measured on an H200, as the next line
_RUN: Final = {torch.bfloat16: 16, torch.float16: 16, torch.float32: 8}  # consecutive pairs of a thread
_FORMATS: Final = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


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
        weight: bfloat16, float16 or float32 [..., k], k a multiple of 32; copied if it is not contiguous.
        profile: name of a profile or a pair such as ``even/even``; also ``ceil_d(D)`` with any D that the core takes.

    Returns:
        codes uint8 [..., k/2] and scales uint8 [..., k/32]: the bytes that ``mxfp4_core.quantize`` gives, with byte
        255 for blocks that are not finite. The call is asynchronous but for msmodelslim's profile and float16, where
        it waits, to learn whether blocks are left for the reference.

    Raises:
        BackendError: Triton is missing, or the weight is not on a GPU.
        ShapeError: k is no multiple of 32.
    """
    chosen = resolve(profile)
    _check(weight, chosen)
    *lead, k = weight.shape
    codes = weight.new_empty((*lead, k // 2), dtype=torch.uint8)
    scales = weight.new_empty((*lead, k // BLOCK), dtype=torch.uint8)
    if weight.numel():
        with torch.cuda.device(weight.device):
            _run(weight.contiguous(), codes, scales, chosen, packed=_packs(weight))
    return codes, scales


def _check(weight: Tensor, profile: Profile) -> None:
    if weight.device.type != "cuda":
        raise BackendError(
            "the GPU quantizer",
            seen=f"a weight on {weight.device}",
            rule="the weight is on a CUDA or ROCm device",
            fix="move it there, or use mxfp4_core.quantize, which runs on any device",
        )
    dtypes = profile.dtypes or tuple(_FORMATS)
    if weight.dtype not in dtypes:
        raise FormatError(
            f"the GPU quantizer with profile {profile.name!r}",
            seen=str(weight.dtype),
            rule=f"the weight is one of {', '.join(map(str, dtypes))}",
            fix="convert the weight first, or use another profile",
        )
    if weight.dim() == 0 or weight.shape[-1] % BLOCK:
        raise ShapeError(
            "the GPU quantizer",
            seen=f"a weight of shape {tuple(weight.shape)}",
            rule=f"the last axis is cut into blocks of {BLOCK}",
            fix="pad the weight with zeros, which is exact",
        )


def _packs(weight: Tensor) -> bool:
    """Say whether the kernel that computes on pairs can do it: its instructions came with SM90."""
    return (
        weight.dtype is not torch.float32
        and torch.version.hip is None
        and torch.cuda.get_device_capability(weight.device) >= (9, 0)
    )


def _run(weight: Tensor, codes: Tensor, scales: Tensor, profile: Profile, *, packed: bool) -> None:
    source, out, out_scales = weight.view(-1, BLOCK), codes.view(-1, BLOCK // 2), scales.view(-1)
    pair = 2 * weight.element_size()
    if source.data_ptr() % pair:  # pairs are read as one integer
        source = source.clone()
    pairs = source.view(torch.int32 if pair == 4 else torch.int64)
    *table, complete = tables(profile, weight.dtype, weight.device)
    for start in range(0, out_scales.numel(), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        with compiling("quantising on the GPU", "mxfp4_core.quantize does it without Triton"):
            _launch(pairs[part], out[part], out_scales[part], table, weight.dtype, profile, packed)
    if not complete:
        left = (out_scales == E8M0_NAN).nonzero(as_tuple=True)[0]
        done = reference.quantize(source[left].cpu(), profile)
        out[left] = done[0].to(weight.device)
        out_scales[left] = done[1][:, 0].to(weight.device)


def _launch(
    pairs: Tensor,
    codes: Tensor,
    scales: Tensor,
    table: list[Tensor],
    dtype: torch.dtype,
    profile: Profile,
    packed: bool,
) -> None:
    kernels, blocks = _kernels(), scales.numel()
    grid = (-(-blocks // _BLOCKS),)
    data = (pairs, codes.view(torch.int8), scales.view(torch.int8), *table, blocks)
    if packed:
        text, constraints = encoder(profile, dtype)
        kernels.packed_kernel[grid](
            *data,
            ENCODE=text,
            CONSTRAINTS=constraints,
            HALF=dtype is torch.float16,
            NB=_BLOCKS,
            num_warps=_WARPS,
        )
    else:
        kernels.portable_kernel[grid](
            *data,
            FORMAT=_FORMATS[dtype],
            TIES=str(profile.ties),
            ZEROS=str(profile.zeros),
            LIFT=profile.low_tie_up and dtype is torch.float32,
            RUN=_RUN[dtype],
            NB=_BLOCKS,
            num_warps=_WARPS,
        )


__all__ = ["PROFILES", "quantize"]
