"""Quantise on a GPU by Triton: the bytes of the judge for every profile and dtype, at or near the speed of a copy.

Two kernels do the work: one for bfloat16 and float16 on NVIDIA GPUs from SM90 on that computes on pairs (PTX inside),
and a portable one for float32 and for every other GPU that Triton knows. The scale rule of a profile is a table; should
one not cover a block, the reference does it.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from mxfp4_core.arithmetic.fast.triton.ptx import encoder
from mxfp4_core.arithmetic.fast.triton.tables import tables
from mxfp4_core.arithmetic.fast.triton.toolchain import compiling
from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.arithmetic.profile import Profile
from mxfp4_core.arithmetic.profiles import resolve
from mxfp4_core.errors import BackendError, FormatError, ShapeError

_DENSE: Final = torch.contiguous_format
_AT_ONCE: Final = 1 << 30  # blocks in one launch: 32-bit block numbers stay positive
_BLOCKS, _WARPS = 64, 2  # of a program; measured on an H200, as the next line
_RUN: Final = {torch.bfloat16: 16, torch.float16: 16, torch.float32: 8}  # consecutive pairs of a thread
_FORMATS: Final = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@functools.cache
def _kernels() -> ModuleType:
    try:
        from mxfp4_core.arithmetic.fast.triton import kernels
    except ImportError as error:
        raise BackendError(
            "the GPU quantizer",
            seen=f"importing Triton failed: {error}",
            rule="its kernels are written in Triton",
            fix="pip install 'triton>=3.4', or use mxfp4_core.quantize, which runs on any device without it",
        ) from error
    return kernels


def quantize_triton(
    weight: Tensor, profile: str = "even/even", *, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Quantise a weight to ``mxfp4`` on its GPU.

    Args:
        weight: bfloat16, float16 or float32 [..., k], k a multiple of 32; copied if it is not contiguous.
        profile: name of a profile or a pair such as ``even/even``; also ``ceil_d(D)`` with any D that the core takes.
        out: codes uint8 or float4_e2m1fn_x2 [..., k/2] and scales uint8 or float8_e8m0fnu [..., k/32] to write to, on
            the same GPU. Contiguous ones are written by the kernel itself, others copied into.

    Returns:
        codes uint8 [..., k/2] and scales uint8 [..., k/32]: the bytes that ``mxfp4_core.quantize`` gives, with byte
        255 for blocks that are not finite; views of ``out`` if it is given. The call is asynchronous.

    Raises:
        BackendError: Triton is missing, or the weight is not on a GPU.
        FormatError: a dtype that is not taken, of the weight or of ``out``.
        ShapeError: k is no multiple of 32, or ``out`` does not fit.
    """
    chosen = resolve(profile)
    _check(weight, chosen)
    *lead, k = weight.shape
    if out is None:
        codes = weight.new_empty((*lead, k // 2), dtype=torch.uint8)
        scales = weight.new_empty((*lead, k // BLOCK), dtype=torch.uint8)
    else:
        codes, scales = _outputs(weight, *out)
    if weight.numel():
        dense = codes if codes.is_contiguous() else torch.empty_like(codes, memory_format=_DENSE)
        dense_scales = scales if scales.is_contiguous() else torch.empty_like(scales, memory_format=_DENSE)
        with torch.cuda.device(weight.device):
            _run(weight.contiguous(), dense, dense_scales, chosen, packed=_packs(weight))
        for made, there in ((dense, codes), (dense_scales, scales)):
            if made is not there:
                there.copy_(made)
    return codes, scales


def _outputs(weight: Tensor, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    *lead, k = weight.shape
    codes = codes.view(torch.uint8) if codes.dtype is torch.float4_e2m1fn_x2 else codes
    scales = scales.view(torch.uint8) if scales.dtype is torch.float8_e8m0fnu else scales
    if codes.shape != (*lead, k // 2) or scales.shape != (*lead, k // BLOCK):
        raise ShapeError(
            "the GPU quantizer",
            seen=f"a weight {tuple(weight.shape)}, codes {tuple(codes.shape)}, scales {tuple(scales.shape)}",
            rule=f"codes [..., k / 2] and scales [..., k / {BLOCK}] for a weight [..., k]",
            fix="pass the matching slices",
        )
    if {(codes.dtype, codes.device), (scales.dtype, scales.device)} != {(torch.uint8, weight.device)}:
        raise FormatError(
            "the GPU quantizer",
            seen=f"codes {codes.dtype} on {codes.device}, scales {scales.dtype} on {scales.device}",
            rule=f"both hold bytes, on {weight.device} as the weight",
            fix="allocate them with dtype=torch.uint8 on the device of the weight",
        )
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
    table = tables(profile, weight.dtype, weight.device)
    for start in range(0, out_scales.numel(), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        with compiling("quantising on the GPU", "mxfp4_core.quantize does it without Triton"):
            _launch(pairs[part], out[part], out_scales[part], table, weight.dtype, profile, packed)


def _launch(
    pairs: Tensor,
    codes: Tensor,
    scales: Tensor,
    table: tuple[Tensor, Tensor, bool],
    dtype: torch.dtype,
    profile: Profile,
    packed: bool,
) -> None:
    kernels, blocks = _kernels(), scales.numel()
    grid = (-(-blocks // _BLOCKS),)
    threshold, states, three = table
    data = (pairs, codes.view(torch.int8), scales.view(torch.int8), threshold, states, blocks)
    if packed:
        text, constraints = encoder(profile, dtype)
        kernels.packed_kernel[grid](
            *data,
            ENCODE=text,
            CONSTRAINTS=constraints,
            HALF=dtype is torch.float16,
            THREE=three,
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
            THREE=three,
            NB=_BLOCKS,
            num_warps=_WARPS,
        )


__all__ = ["quantize_triton"]
