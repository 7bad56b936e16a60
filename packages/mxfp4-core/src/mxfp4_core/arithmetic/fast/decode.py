"""The parts of a weight to values at speed, on the CPU and on any torch device.

Every E2M1 value times a power of two is exact while it is a normal number, so the fast CPU path builds its bits. Blocks
with scales beyond that go through the reference; a float16 result is there the float32 one rounded to nearest even.
"""

from __future__ import annotations

from types import ModuleType

import torch

from mxfp4_core.arithmetic import reference
from mxfp4_core.arithmetic.codec import decode_scales
from mxfp4_core.arithmetic.dense import check_dense
from mxfp4_core.arithmetic.fast.choose import cpu_kernels
from mxfp4_core.arithmetic.fast.pages import empty
from mxfp4_core.arithmetic.fast.threads import spread
from mxfp4_core.arithmetic.format import BLOCK, E2M1_VALUES, GROUP
from mxfp4_core.errors import FormatError


def dequantize(
    codes: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype = torch.bfloat16,
    *,
    out: torch.Tensor | None = None,
    threads: int | None = None,
) -> torch.Tensor:
    """Return the values of ``mxfp4``; arguments as for :func:`mxfp4_core.dequantize`."""
    check_pair(codes, scales, "codes and scales")
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    out = room_for(shape, dtype, codes.device, out)
    kernels = cpu_kernels() if codes.device.type == "cpu" else None
    if dtype is torch.float64:  # wider than what the fast paths build: bytes 253 and 254 stay finite
        out.copy_(reference.dequantize(codes, scales))
    elif kernels is None:
        _dequantize_device(codes, scales, out)
    elif out.numel():
        flat = codes.contiguous().view(-1), scales.contiguous().view(-1)
        _dequantize_cpu(kernels, *flat, out.view(-1), threads)
    return out


def dequantize_dual(
    codes: torch.Tensor, scales: torch.Tensor, level0: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return the values of ``mxfp4-dual``, ``[..., K]``: exact, rounded to float32, then to dtype."""
    exact = dtype is torch.float64 or codes.device.type != "cpu" or not _normal(scales)
    values = dequantize(codes, scales, torch.float64 if exact else torch.float32)
    groups = values.unflatten(-1, (-1, GROUP))
    groups *= level0.to(values.dtype)[..., None]
    return values if dtype is torch.float64 else values.to(torch.float32).to(check_dtype(dtype))


def _normal(scales: torch.Tensor) -> bool:
    """Say whether every code under these scales is a float32 number that a product rounds but once."""
    return not scales.numel() or bool((scales >= 2).all() and (scales <= 252).all())


def dequantize_e4m3(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the values of ``mxfp8``, ``[..., K]``: exact in float32, then rounded to dtype."""
    check_dtype(dtype)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    values = codes.to(wide).unflatten(-1, (-1, BLOCK)) * decode_scales(scales).to(wide)[..., None]
    return values.flatten(-2).to(dtype)


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a result, or raise FormatError."""
    if dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise FormatError(
            "codes cannot be dequantised to that dtype",
            seen=str(dtype),
            rule="the result is bfloat16, float16, float32 or float64",
            fix="ask for torch.bfloat16 and convert the result",
        )
    return dtype


def room_for(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, out: torch.Tensor | None
) -> torch.Tensor:
    """Return ``out`` if values can be written there, or new memory."""
    check_dtype(dtype)
    if out is None:
        return empty(shape, dtype, device)
    check_dense(out, "out")
    if (out.shape, out.dtype, out.device) != (shape, dtype, device) or not out.is_contiguous():
        raise FormatError(
            "dequantised values cannot be written there",
            seen=f"{out.dtype} {tuple(out.shape)} on {out.device}, strides {out.stride()}",
            rule=f"out is contiguous, {dtype} {shape} on {device}",
            fix="allocate it with torch.empty of that shape, or leave it out",
        )
    return out


def _dequantize_cpu(
    kernels: ModuleType, codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor, threads: int | None
) -> None:
    """Decode flat, contiguous blocks."""
    size = out.element_size()
    first, last = kernels.NORMAL[out.dtype]

    def run(start: int, stop: int) -> int:
        left: int = kernels.dequantize(
            kernels.TAGS[out.dtype],
            size,
            codes.data_ptr() + start * (BLOCK // 2),
            scales.data_ptr() + start,
            out.data_ptr() + start * BLOCK * size,
            stop - start,
            first,
            last,
        )
        return left

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
    check_dense(codes, f"codes of {name}")
    check_dense(scales, f"scales of {name}")
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


__all__ = ["check_dtype", "check_pair", "dequantize", "dequantize_dual", "dequantize_e4m3", "room_for"]
