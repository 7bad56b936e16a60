"""Quantised weights to values, with the fastest path that gives those of the judge."""

from __future__ import annotations

from typing import overload

import torch

from mxfp4_core.arithmetic.dense import check_dense
from mxfp4_core.arithmetic.fast.decode import check_pair, room_for
from mxfp4_core.arithmetic.fast.decode import dequantize as _decode
from mxfp4_core.arithmetic.formats.mxfp4 import CODES, MXFP4, SCALES
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.errors import FormatError


@overload
def dequantize(
    codes: MxTensor,
    *,
    dtype: torch.dtype = torch.bfloat16,
    out: torch.Tensor | None = None,
    threads: int | None = None,
) -> torch.Tensor: ...


@overload
def dequantize(
    codes: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype = torch.bfloat16,
    *,
    out: torch.Tensor | None = None,
    threads: int | None = None,
) -> torch.Tensor: ...


def dequantize(
    codes: torch.Tensor | MxTensor,
    scales: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    *,
    out: torch.Tensor | None = None,
    threads: int | None = None,
) -> torch.Tensor:
    """Return the values that codes and scales stand for, or those of a tensor of any format.

    Args:
        codes: an `MxTensor`, and no scales; or uint8 or float4_e2m1fn_x2 ``[..., K / 2]``, even K in the low nibble,
            any strides.
        scales: uint8 or float8_e8m0fnu ``[..., K / 32]`` E8M0, on the same device.
        dtype: bfloat16, float16, float32 or float64. Values beyond its range become infinite.
        out: contiguous ``[..., K]`` of that dtype to write to; touching fresh memory costs more than decoding.
        threads: CPU threads to use; torch's number if None.

    Returns:
        ``[..., K]`` of that dtype, on the same device, with the logical K of an `MxTensor`; NaN throughout blocks whose
        byte is 255.

    Raises:
        FormatError: dtypes, shapes or devices that do not belong together.
    """
    if not isinstance(codes, MxTensor):
        check_dense(codes, "codes")
        if scales is None:
            raise FormatError(
                "codes cannot be dequantised",
                seen=f"codes {codes.dtype} {tuple(codes.shape)} without scales",
                rule="codes are nothing without their scales",
                fix="pass codes and scales, or an MxTensor",
            )
        check_dense(scales, "scales")
        if codes.dtype is not torch.uint8 or scales.dtype is not torch.uint8:
            codes, scales = CODES.raw(codes), SCALES.raw(scales)
        return _decode(codes, scales, dtype, out=out, threads=threads)
    if scales is not None:
        raise FormatError(
            "an MxTensor cannot be dequantised",
            seen="an MxTensor and scales beside it",
            rule="an MxTensor has its scales",
            fix="pass the MxTensor alone, and dtype= by name",
        )
    if codes.format is MXFP4 and codes.shape == codes.physical_shape:
        return _decode(codes.parts["codes"], codes.parts["scales"], dtype, out=out, threads=threads)
    values = codes.dequantize(dtype)
    return values if out is None else room_for(tuple(codes.shape), dtype, codes.device, out).copy_(values)


__all__ = ["check_pair", "dequantize"]
