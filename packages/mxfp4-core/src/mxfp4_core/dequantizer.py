"""Codes and scales to values at speed, on the CPU and on any torch device.

Every E2M1 value times a power of two is exact in bfloat16 and float32 while it is a normal number, so the fast CPU path
builds its bits; the ends of the range (bytes 0, 1 and 253 to 255) go through the reference. A float16 result is the
float32 one rounded to nearest even.
"""

from __future__ import annotations

import math

import torch

from mxfp4_core import reference
from mxfp4_core._threads import spread
from mxfp4_core.codec import decode_scales
from mxfp4_core.errors import FormatError
from mxfp4_core.format import BLOCK, E2M1_VALUES


def dequantize(
    codes: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype = torch.bfloat16,
    *,
    threads: int | None = None,
) -> torch.Tensor:
    """Return the values that codes and scales stand for.

    Args:
        codes: uint8 ``[..., K / 2]``, even K in the low nibble, any strides.
        scales: uint8 ``[..., K / 32]`` E8M0, on the same device.
        dtype: bfloat16, float16, float32 or float64. Values beyond its range become infinite.
        threads: CPU threads to use; torch's number if None.

    Returns:
        ``[..., K]`` of that dtype, on the same device; NaN throughout blocks whose byte is 255.

    Raises:
        FormatError: dtypes, shapes or devices that do not belong together.
    """
    check_pair(codes, scales, "codes and scales")
    if dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise FormatError(
            "codes cannot be dequantised to that dtype",
            seen=str(dtype),
            rule="the result is bfloat16, float16, float32 or float64",
            fix="ask for torch.bfloat16 and convert the result",
        )
    if dtype is torch.float64:  # wider than what the fast paths build: bytes 253 and 254 stay finite
        return reference.dequantize(codes, scales)
    if codes.device.type != "cpu":
        return _dequantize_device(codes, scales, dtype)
    wide = torch.bfloat16 if dtype is torch.bfloat16 else torch.float32
    return _dequantize_cpu(codes.contiguous(), scales.contiguous(), wide, threads).to(dtype)


def _dequantize_cpu(
    codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype, threads: int | None
) -> torch.Tensor:
    from mxfp4_core import _kernels_cpu as kernels  # numba takes a second to import

    out = torch.empty((*codes.shape[:-1], codes.shape[-1] * 2), dtype=dtype)
    blocks = math.prod(scales.shape)
    if not blocks:
        return out

    def run(start: int, stop: int) -> int:
        # Everything is contiguous here, so that all blocks form one row.
        return kernels.dequantize(
            kernels.TAGS[dtype],
            out.element_size(),
            codes.data_ptr(),
            scales.data_ptr(),
            out.data_ptr(),
            (0, 0, 0),
            blocks,
            start,
            stop,
        )

    if spread(run, blocks, threads):
        flat = scales.view(-1)
        ends = ((flat < kernels.DECODE_MIN) | (flat > kernels.DECODE_MAX)).nonzero()[:, 0]
        values = reference.dequantize(codes.view(-1, BLOCK // 2)[ends], flat[ends][:, None])
        out.view(-1, BLOCK)[ends] = values.to(dtype)
    return out


def _dequantize_device(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # In float64, since a GPU may flush subnormal float32 products.
    table = torch.tensor(E2M1_VALUES, dtype=torch.float64, device=codes.device)
    wide = torch.bfloat16 if dtype is torch.bfloat16 else torch.float32
    power = decode_scales(scales)
    out = torch.empty((*codes.shape[:-1], codes.shape[-1] * 2), dtype=wide, device=codes.device)
    blocks = out.unflatten(-1, (-1, BLOCK))
    nibbles = codes.unflatten(-1, (-1, BLOCK // 2))
    blocks[..., 0::2] = (table[(nibbles & 0xF).int()] * power[..., None]).to(wide)
    blocks[..., 1::2] = (table[(nibbles >> 4).int()] * power[..., None]).to(wide)
    return out.to(dtype)


def check_pair(codes: torch.Tensor, scales: torch.Tensor, name: str) -> None:
    """Check that codes and scales belong together.

    Raises:
        FormatError: they are not uint8, not on one device, or their shapes are not ``[..., K/2]`` and ``[..., K/32]``.
    """
    fits = (
        codes.dtype == scales.dtype == torch.uint8
        and codes.device == scales.device
        and codes.ndim == scales.ndim >= 1
        and codes.shape[:-1] == scales.shape[:-1]
        and codes.shape[-1] * 2 == scales.shape[-1] * BLOCK
    )
    if not fits:
        raise FormatError(
            f"{name} do not belong together",
            seen=f"codes {codes.dtype} {tuple(codes.shape)} on {codes.device}, "
            f"scales {scales.dtype} {tuple(scales.shape)} on {scales.device}",
            rule=f"codes uint8 [..., K/2] and scales uint8 [..., K/{BLOCK}] on one device",
            fix="pass the pair that one quantizer wrote, with float8_e8m0fnu scales viewed as uint8",
        )


__all__ = ["check_pair", "dequantize"]
