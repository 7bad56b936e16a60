"""Codes and scales to values at speed, on the CPU and on any torch device.

Every E2M1 value times a power of two is exact while it is a normal number, so the fast CPU path builds its bits. Blocks
with scales beyond that go through the reference; a float16 result is there the float32 one rounded to nearest even.
"""

from __future__ import annotations

import torch

from mxfp4_core.arithmetic import reference
from mxfp4_core.arithmetic.codec import decode_scales
from mxfp4_core.arithmetic.fast.pages import empty
from mxfp4_core.arithmetic.fast.threads import spread
from mxfp4_core.arithmetic.format import BLOCK, E2M1_VALUES
from mxfp4_core.errors import FormatError


def dequantize(
    codes: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype = torch.bfloat16,
    *,
    out: torch.Tensor | None = None,
    threads: int | None = None,
) -> torch.Tensor:
    """Return the values that codes and scales stand for.

    Args:
        codes: uint8 ``[..., K / 2]``, even K in the low nibble, any strides.
        scales: uint8 ``[..., K / 32]`` E8M0, on the same device.
        dtype: bfloat16, float16, float32 or float64. Values beyond its range become infinite.
        out: contiguous ``[..., K]`` of that dtype to write to; touching fresh memory costs more than decoding.
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
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    if out is None:
        out = empty(shape, dtype, codes.device)
    elif (out.shape, out.dtype, out.device) != (shape, dtype, codes.device) or not out.is_contiguous():
        raise FormatError(
            "dequantised values cannot be written there",
            seen=f"{out.dtype} {tuple(out.shape)} on {out.device}, strides {out.stride()}",
            rule=f"out is contiguous, {dtype} {shape} on {codes.device}",
            fix="allocate it with torch.empty of that shape, or leave it out",
        )
    if dtype is torch.float64:  # wider than what the fast paths build: bytes 253 and 254 stay finite
        out.copy_(reference.dequantize(codes, scales))
    elif codes.device.type != "cpu":
        _dequantize_device(codes, scales, out)
    elif out.numel():
        _dequantize_cpu(codes.contiguous().view(-1), scales.contiguous().view(-1), out.view(-1), threads)
    return out


def _dequantize_cpu(
    codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor, threads: int | None
) -> None:
    """Decode flat, contiguous blocks."""
    from mxfp4_core.arithmetic.fast import cpu as kernels  # numba takes a second to import

    size = out.element_size()
    first, last = kernels.NORMAL[out.dtype]

    def run(start: int, stop: int) -> int:
        return kernels.dequantize(
            kernels.TAGS[out.dtype],
            size,
            codes.data_ptr() + start * (BLOCK // 2),
            scales.data_ptr() + start,
            out.data_ptr() + start * BLOCK * size,
            stop - start,
            first,
            last,
        )

    if spread(run, scales.numel(), threads):
        rest = ((scales < first) | (scales > last)).nonzero()[:, 0]
        rest_codes, rest_scales = codes.view(-1, BLOCK // 2)[rest], scales[rest][:, None]
        if out.dtype is torch.float16:  # most of them are ordinary numbers in float32
            values = dequantize(rest_codes, rest_scales, torch.float32, threads=threads)
        else:
            values = reference.dequantize(rest_codes, rest_scales).to(torch.float32)
        out.view(-1, BLOCK)[rest] = values.to(out.dtype)


def _dequantize_device(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    # In float64, since a GPU may flush subnormal float32 products; float16 through float32, as on the CPU.
    table = torch.tensor(E2M1_VALUES, dtype=torch.float64, device=codes.device)
    power = decode_scales(scales)[..., None]
    blocks = out.unflatten(-1, (-1, BLOCK))
    nibbles = codes.unflatten(-1, (-1, BLOCK // 2))
    for parity, half in enumerate((nibbles & 0xF, nibbles >> 4)):
        blocks[..., parity::2] = (table[half.int()] * power).to(torch.float32).to(out.dtype)


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
